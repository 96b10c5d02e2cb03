"use strict"
// All values come from sprites: pictures whose pixels are stored levels.

// Levels (onnxfeat/report/sprites.py): 0 to LAST are finite, from the least value of a channel to its greatest.
const LAST = 251, GAP = 252, MINUS_INFINITE = 253, PLUS_INFINITE = 254, NOT_A_NUMBER = 255
// What counts as no contrast (onnxfeat/drawing/channel_statistics.py).
const ROUNDING = 4 * 2 ** -23, SMALLEST = 2 ** -126
const BEND = 255 // mu of the mu-law, the value of ITU-T G.711
const MOST_ALIKE = 5000 // channels: it takes a second
const {ceil, expm1, floor, log1p, max, min, round, sqrt, trunc} = Math

const isInline = location.protocol === "about:" // in a notebook
const decoded = new Map() // position of a layer to a promise of it with its values
let data, ui, dark, choices // what the page knows; its elements; the rule of dark colors; what the toolbar says
let screens, active = [] // a grid and a pair of pictures for each photograph; those with a map of the layer
let opened, layer, shown, scaleFor, channel, cell, told = {} // the channels that are shown; what is told of a cell

if ("DecompressionStream" in window) { // without it the page stays as it is without a script
  document.documentElement.classList.add("js")
  document.addEventListener("DOMContentLoaded", start)
}

const find = (selector, box = document) => box.querySelector(selector)
const all = (selector, box = document) => [...box.querySelectorAll(selector)]
const words = (parts, between = ", ") => parts.filter(Boolean).join(between)
const short = (value, digits = 4) => String(Number(value.toPrecision(digits))).replace("Infinity", "∞")
const within = (value, low, high) => min(max(value, low), high)
const range = count => [...Array(count).keys()]
const extent = numbers => [min, max].map(end => numbers.reduce((one, other) => end(one, other)))
const total = (items, of) => items.reduce((sum, item) => sum + of(item), 0)

function rested(rest, call) {
  let timer
  return () => {
    clearTimeout(timer)
    timer = setTimeout(call, rest)
  }
}

// A notebook stays where it is.
function reveal(element) {
  if (!isInline) element.scrollIntoView({block: "nearest", inline: "nearest"})
}

const complain = text => (ui.message.textContent = text)

// == values

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length)
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at)
  return bytes
}

// The levels in a PNG file; of a canvas, browsers that guard against fingerprints change them.
async function pixelsOf(image) {
  const file = bytesOf(image.getAttribute("src").split(",")[1]), numbers = new DataView(file.buffer), parts = []
  for (let at = 8; at < file.length; at += 12 + numbers.getUint32(at)) {
    if (numbers.getUint32(at + 4) === 0x49444154) parts.push(file.subarray(at + 8, at + 8 + numbers.getUint32(at)))
  }
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"))
  const rows = new Uint8Array(await new Response(stream).arrayBuffer())
  const width = numbers.getUint32(16), pixels = new Uint8Array(width * numbers.getUint32(20))
  for (let from = 0, to = 0, isUp; to < pixels.length; to++) {
    if (to % width === 0) isUp = rows[from++] // the filter of a row: None, or Up, what is added to the row above
    pixels[to] = rows[from++] + (isUp && to >= width ? pixels[to - width] : 0)
  }
  return [pixels, width]
}

async function decodeView(view, count, image) {
  const [pixels, width] = await pixelsOf(image), {rows, columns, across} = view
  const numbers = ["low", "high", "mean", "deviation"].map(name => new Float32Array(bytesOf(view[name]).buffer))
  const channels = range(count).map(number => {
    const levels = new Uint8Array(rows * columns), counts = new Uint32Array(256)
    let from = floor(number / across) * (rows + 1) * width + (number % across) * (columns + 1)
    for (let to = 0; to < levels.length; to += columns, from += width) levels.set(pixels.subarray(from, from + columns), to)
    for (const level of levels) counts[level]++
    const [low, high, mean, deviation] = numbers.map(x => x[number]), finite = total(counts.subarray(0, GAP), Number)
    const odd = total(counts.subarray(MINUS_INFINITE), Number)
    return {levels, counts, finite, odd, low, high, mean, deviation, isConstant: finite > 0 && isFlat(low, high)}
  })
  return {...view, channels, image, name: data.photographs[view.photograph].name}
}

async function decodeLayer(position) {
  const found = data.layers[position], images = all("img.sprite", ui.sections[position]), index = range(found.channels)
  const views = await Promise.all(found.views.map((view, at) => decodeView(view, found.channels, images[at])))
  const orders = {index}, Index = index.length <= 1 << 16 ? Uint16Array : Uint32Array
  for (const name in found.orders) orders[name] = [...new Index(bytesOf(found.orders[name]).buffer)]
  return {...found, views, orders, flat: index.map(number => pooled(views.map(view => view.channels[number])).isConstant)}
}

// Only the neighbors of a layer are kept: each takes some MB.
function layerAt(position) {
  for (const other of decoded.keys()) if (other < opened - 1 || other > opened + 1) decoded.delete(other)
  if (!decoded.has(position)) decoded.set(position, decodeLayer(position))
  return decoded.get(position)
}

function valueOf({low, high}, level) {
  if (level <= LAST) return low + (level / LAST) * (high - low)
  return level === NOT_A_NUMBER ? NaN : level === PLUS_INFINITE ? Infinity : -Infinity
}

// == scales, as in onnxfeat/drawing/scales.py

const isFlat = (low, high) => high - low <= max(ROUNDING * max(-low, high), SMALLEST)

function pooled(channels) {
  const some = channels.filter(x => x.finite), count = total(some, x => x.finite)
  const mean = total(some, x => (x.mean * x.finite) / count)
  const variance = total(some, x => ((x.deviation ** 2 + (x.mean - mean) ** 2) * x.finite) / count)
  const [low, high] = extent(count ? some.flatMap(x => [x.low, x.high]) : [0])
  return {low, high, mean, deviation: sqrt(variance), isConstant: count > 0 && isFlat(low, high)}
}

// Between two values in proportion, as in NumPy.
function percentilesOf(channels) {
  const levels = range(GAP), found = channels.flatMap(x => levels.filter(level => x.counts[level]).map(level => [valueOf(x, level), x.counts[level]]))
  let count = 0
  const ends = found.sort((one, other) => one[0] - other[0]).map(x => (count += x[1]))
  const at = rank => found[ends.findIndex(end => end > rank)][0]
  return data.style.percentiles.map(percent => {
    const rank = (percent / 100) * (count - 1), low = floor(rank)
    return count && at(low) + (at(ceil(rank)) - at(low)) * (rank - low)
  })
}

// Middle and reach of the scale that channels share.
function scaleOf(channels) {
  const {low, high, mean, deviation, isConstant} = channels.length > 1 ? pooled(channels) : channels[0]
  if (choices.normalize === "zscore") return {middle: mean, reach: isConstant ? 0 : 2 * deviation}
  if (choices.normalize === "symmetric") return {middle: 0, reach: max(-low, high)}
  let [least, most] = choices.normalize === "percentile" ? percentilesOf(channels) : [low, high]
  if (most - least <= SMALLEST) [least, most] = [low, high]
  return {middle: (least + most) / 2, reach: isFlat(least, most) ? 0 : (most - least) / 2}
}

function scalesOf(views) {
  const scales = new Map(), together = views.flatMap(view => view.channels) // by the first of the channels that share one
  return (view, number) => {
    const groups = {alone: [view.channels[number]], layer: view.channels, batch: together}
    const group = groups[choices.scale_over] ?? views.map(x => x.channels[number])
    if (!scales.has(group[0])) scales.set(group[0], scaleOf(group))
    return scales.get(group[0])
  }
}

function shownLevel(value, {middle, reach}) {
  const part = ((value - middle) / reach + 1) / 2 // of the way from end to end
  const bent = choices.normalize === "log" ? log1p(max(BEND * part, 0)) / log1p(BEND) : part
  return reach ? within(trunc(256 * bent), 0, 255) : 128
}

function endsOf({middle, reach}) {
  if (!reach) return ["", `${short(middle)}, no contrast`, ""]
  const along = part => (choices.normalize === "log" ? expm1(part * log1p(BEND)) / BEND : part)
  return [0, 0.5, 1].map(part => short(middle - reach + 2 * reach * along(part)))
}

// == colors

function colorTable() {
  const bytes = bytesOf(data.colormaps[choices.colors])
  return Uint32Array.from(range(256), at => (255 << 24) | (bytes[3 * at + 2] << 16) | (bytes[3 * at + 1] << 8) | bytes[3 * at])
}

function paletteOf(found, scale, table) {
  const palette = found.counts.map((count, level) => (count && level <= LAST ? table[shownLevel(valueOf(found, level), scale)] : 0))
  palette[MINUS_INFINITE] = palette[PLUS_INFINITE] = 0xffffff00 // cyan
  palette[NOT_A_NUMBER] = 0xffff00ff // magenta
  return palette
}

function putPixels(canvas, width, height, write) {
  const image = new ImageData(width, height)
  write(new Uint32Array(image.data.buffer))
  Object.assign(canvas, {width, height}).getContext("2d").putImageData(image, 0, 0)
}

function drawChannels(canvas, width, height, view, numbers, cornerOf) {
  const table = colorTable()
  putPixels(canvas, width, height, pixels => numbers.forEach((number, at) => {
    const found = view.channels[number], palette = paletteOf(found, scaleFor(view, number), table), [left, top] = cornerOf(at)
    for (let row = 0, from = 0; row < view.rows; row++) {
      for (let to = (top + row) * width + left, end = to + view.columns; to < end; ) pixels[to++] = palette[found.levels[from++]]
    }
  }))
}

function drawLegend(box, ends) {
  putPixels(find(".bar", box), 256, 1, pixels => pixels.set(colorTable()))
  all(".ends span", box).forEach((end, at) => (end.textContent = ends[at]))
}

// == order of the channels

function shownChannels() {
  const {orders, flat} = layer
  if (layer.channels <= MOST_ALIKE) orders[choices.order] ??= bySimilarity()
  const ranked = orders[choices.order] ?? orders.index
  const lively = ranked.filter(number => !flat[number]), rest = ranked.filter(number => flat[number])
  const kept = {keep: ranked, last: [...lively, ...rest], omit: lively.length ? lively : rest}[choices.dead]
  return kept.slice(0, choices.top || ranked.length)
}

// Values of a channel, such that the product of two is their correlation.
function unitVector(number) {
  return layer.views.flatMap(({channels}) => {
    const found = channels[number], unit = level => (valueOf(found, level) - found.mean) / found.deviation
    return Array.from(found.levels, level => (level > LAST || found.isConstant ? 0 : unit(level)))
  })
}

// Each channel is followed by the one most alike of those that are left.
function bySimilarity() {
  const {flat, orders} = layer, left = orders.index.filter(number => !flat[number]), vectors = left.map(unitVector), path = []
  for (let next = 0; left.length; ) {
    const [vector] = vectors.splice(next, 1)
    path.push(...left.splice(next, 1))
    const alike = vectors.map(other => {
      let product = 0
      for (let at = 0; at < vector.length; at++) product += vector[at] * other[at]
      return round((product / vector.length) * 1e4) // differences by rounding do not count
    })
    next = alike.length && alike.indexOf(extent(alike)[1])
  }
  return [...path, ...orders.index.filter(number => flat[number])]
}

// == the grids

// Tiles in cells, how many lie in a row, pixels of a cell.
function layoutOf({rows, columns}) {
  const isLine = rows === 1 && columns > 1, wide = columns + 1, high = rows + !isLine, box = ui.grids.clientWidth - 8, count = shown.length
  const room = box / within(floor(box / 204), 1, active.length) - 14, tallest = max(ui.main.clientHeight - 330, 240)
  const filling = sqrt((room * tallest) / (count * wide * high)), legible = ceil(36 / columns)
  const zoom = choices.zoom || within(round(max(filling, legible)), 1, within(floor(room / wide), 1, 24))
  const across = within(floor(room / zoom / wide), 1, count), cornerOf = at => [(at % across) * wide, floor(at / across) * high]
  return {wide, high, across, down: ceil(count / across), cornerOf, zoom, tall: isLine ? max(zoom, 6) : zoom}
}

function drawGrid(screen) {
  const {view, grid} = screen, layout = (screen.layout = layoutOf(view)), {cornerOf} = layout
  const width = layout.across * layout.wide, height = layout.down * layout.high, canvas = find("canvas", grid), svg = find("svg", grid)
  drawChannels(canvas, width, height, view, shown, cornerOf)
  Object.assign(canvas.style, {width: `${width * layout.zoom}px`, height: `${height * layout.tall}px`})
  canvas.ariaLabel = `${view.image.alt}; ${choices.normalize} over ${choices.scale_over}`
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`)
  const flat = range(shown.length).filter(at => view.channels[shown[at]].isConstant)
  const strikes = flat.map(at => `M${cornerOf(at)}m0 ${view.rows}l${view.columns} ${-view.rows}`).join("")
  for (const line of all(".strike", svg)) line.setAttribute("d", strikes)
  find("figcaption", grid).textContent = view.image.nextElementSibling.textContent
}

function outline(selector, number) {
  const at = shown.indexOf(number)
  for (const {view, grid, layout} of active) {
    find(selector, grid).setAttribute("d", at < 0 ? "" : `M${layout.cornerOf(at)}h${view.columns}v${view.rows}h${-view.columns}z`)
  }
}

// The cell at parts of a grid's sides; null between tiles.
function cellAt({view, layout: {wide, high, across, down}}, x, y) {
  const left = floor(x * across * wide), top = floor(y * down * high), row = top % high, column = left % wide
  const number = shown[floor(top / high) * across + floor(left / wide)]
  return number !== undefined && row < view.rows && column < view.columns ? {view, number, row, column} : null
}

function point({target, clientX, clientY, type}) {
  const stage = target.closest(".stage"), screen = active.find(x => x.grid.contains(stage) || x.pair.contains(stage))
  cell = null
  if (stage && screen) {
    const box = stage.getBoundingClientRect(), part = (from, length) => within(from / length, 0, 1 - 1e-9), {view, seen, large} = screen
    const x = part(clientX - box.left, box.width), y = part(clientY - box.top, box.height)
    if (stage === seen) return showPixel(screen, x, y)
    const inLarge = {view, number: channel, row: floor(y * view.rows), column: floor(x * view.columns)}
    cell = stage === large ? inLarge : cellAt(screen, x, y)
    if (stage !== large) ui.aside.scrollTop = screen.pair.offsetTop - screens[0].pair.offsetTop
  } else if (!("row" in told)) return // nothing is to be taken back
  showCell()
  if (cell && type === "click") selectChannel(cell.number)
}

// == the selected channel

function drawPair({view, pair, size, seen, large}) {
  const {rows, columns} = view, found = view.channels[channel], canvas = find("canvas", large)
  if (size) seen.style.setProperty("--ratio", size[1] / size[0])
  large.style.setProperty("--ratio", rows > 1 ? columns / rows : 8)
  drawChannels(canvas, columns, rows, view, [channel], () => [0, 0])
  canvas.ariaLabel = `${layer.name}, channel ${channel} for ${view.name}, values ${short(found.low)} to ${short(found.high)}`
  drawLegend(pair, endsOf(scaleFor(view, channel)))
  for (const fact of all("[data-fact]", pair)) fact.textContent = found.finite ? short(found[fact.dataset.fact]) : "–"
  const flat = found.isConstant && (view.dead.includes(channel) ? "dead: 0 everywhere" : "constant")
  find(".note", pair).textContent = words([flat, found.odd && `${found.odd} NaN or infinite`])
}

function drawChannel() {
  ui.channel.textContent = `Channel ${channel}`
  Object.assign(ui.aside.dataset, {layer: layer.name, channel})
  active.forEach(drawPair)
  outline(".selected", channel)
  showCell()
}

// == cells and what they see

const runsOf = flat => range(flat.length / 2).map(at => [flat[2 * at], flat[2 * at + 1]])
const runsAt = places => places.map(place => [place, place + 1])

// Runs in order, as one where no more than `apart` lies between two.
function joined(runs, apart = 0) {
  const found = []
  for (const [start, stop] of [...runs].sort((one, other) => one[0] - other[0])) {
    const last = found.at(-1)
    if (last && start <= last[1] + apart) last[1] = max(last[1], stop)
    else found.push([start, stop])
  }
  return found
}

// What a cell sees: rectangles, as products of runs of rows and runs of columns.
function fieldOf({terms}, row, column) {
  const found = terms.map(term => ({rows: runsOf(term.rows[row]), columns: runsOf(term.columns[column])}))
  return found.filter(({rows, columns}) => rows.length && columns.length)
}

// Rows and columns of the cells that see a pixel.
function seeing({terms}, row, column) {
  const leading = (ways, place) => range(ways.length).filter(at => runsOf(ways[at]).some(([start, stop]) => start <= place && place < stop))
  return terms.map(({rows, columns}) => ({rows: leading(rows, row), columns: leading(columns, column)}))
}

function cleared(stage) {
  const canvas = stage.lastElementChild
  canvas.width = canvas.clientWidth * devicePixelRatio
  canvas.height = canvas.clientHeight * devicePixelRatio
  return canvas.getContext("2d")
}

// Outline rectangles on a stage, and dim all else.
function mark(stage, rows, columns, terms, isDimmed = true) {
  const context = cleared(stage), {width, height} = context.canvas, across = width / columns, down = height / rows
  const each = (apart, draw) => {
    for (const term of terms) for (const [top, bottom] of joined(term.rows, apart / down)) {
      for (const [left, right] of joined(term.columns, apart / across)) {
        const x = round(left * across), y = round(top * down)
        draw.call(context, x, y, max(round(right * across) - x, 1), max(round(bottom * down) - y, 1))
      }
    }
  }
  context.fillStyle = "rgb(0 0 0 / 62%)"
  if (isDimmed) context.fillRect(0, 0, width, height)
  // The inside is cleared below: rectangles that overlap have one outline. Tiny holes have none.
  for (const [strokeStyle, wide] of [["#000", 8], ["#ffd84d", 4]]) {
    each(3, Object.assign(context, {strokeStyle, lineWidth: wide * devicePixelRatio}).strokeRect)
  }
  each(0, context.clearRect)
}

const markCell = (stage, rows, columns, row, column, isDimmed) =>
  mark(stage, rows, columns, [{rows: runsAt([row]), columns: runsAt([column])}], isDimmed)

// Tell something else; screen readers wait until the pointer rests.
function tell(facts, ...lines) {
  for (const name in told) delete ui.aside.dataset[name]
  Object.assign(ui.aside.dataset, facts)
  told = facts
  for (const {seen, large} of active) [seen, large].forEach(cleared)
  ui.readout.ariaBusy = "true"
  ui.readout.textContent = words(lines, "\n")
  readOut()
}
const readOut = rested(300, () => (ui.readout.ariaBusy = "false"))

const doubts = fields => words([fields.bounded && "at most", fields.gated && ui.readout.dataset.gated], "; ")

function showCell() {
  outline(".hovered", cell?.number)
  const why = layer.why_no_place && `no place: ${layer.why_no_place}`
  const {view, number, row, column} = cell ?? {}, found = view?.channels[number]
  const level = found?.levels[row * view.columns + column] ?? GAP
  if (level === GAP) return tell({}, ui.readout.dataset.hint, why)
  const screen = screens[view.photograph], {seen, large, size, fields, what} = screen, facts = {row, column, photograph: view.photograph}
  facts.value = valueOf(found, level)
  const half = (found.high - found.low) / LAST / 2, exact = level > LAST ? "" : half ? ` ± ${short(half, 2)}` : ", exactly"
  const lines = [`value ${short(facts.value)}${exact}`, placeOf(cell, facts)], terms = fields ? fieldOf(fields, row, column) : []
  if (terms.length) {
    const [top, bottom, left, right] = ["rows", "columns"].flatMap(axis => extent(terms.flatMap(term => term[axis].flat())))
    facts.field = JSON.stringify([top, bottom, left, right])
    lines.push(`sees rows ${top} to ${bottom - 1}, columns ${left} to ${right - 1} of the ${what}`, doubts(fields))
  } else lines.push(fields ? "sees only padding" : why)
  tell(facts, ...lines)
  markCell(large, view.rows, view.columns, row, column, false)
  if (fields) mark(seen, ...size, terms)
}

function placeOf({view, number, row, column}, facts) {
  const {slices, slices_across: across, block, numbers, name} = view
  const high = (view.rows + 1) / ceil(slices / across), wide = (view.columns + 1) / across
  if (numbers) return `channel ${row * view.columns + column}, ${name}`
  if (slices > 1) facts.slice = floor(row / high) * across + floor(column / wide)
  const slice = slices > 1 && `slice ${facts.slice * block}`, mean = block > 1 && `mean of ${block} cells along each axis`
  return words([`channel ${number}`, slice, `row ${(row % high) * block}`, `column ${(column % wide) * block}`, mean, name])
}

function showPixel(screen, x, y) {
  const {view, size, fields, seen, large, what} = screen, row = floor(y * size[0]), column = floor(x * size[1])
  if (!fields) return
  const terms = seeing(fields, row, column), {levels, low, high} = view.channels[channel]
  const places = range(levels.length).map(at => [floor(at / view.columns), at % view.columns])
  const cells = places.filter(([r, c]) => terms.some(term => term.rows.includes(r) && term.columns.includes(c)))
  const known = cells.map(([r, c]) => levels[r * view.columns + c]).filter(level => level <= LAST)
  const values = known.length && `values ${extent(known).map(level => short(valueOf({low, high}, level))).join(" to ")}`
  const lines = [`row ${row}, column ${column} of the ${what}, ${view.name}`, words([`seen by ${cells.length} cells`, values]), doubts(fields)]
  tell({row, column, photograph: view.photograph, cells: JSON.stringify(cells)}, ...lines)
  mark(large, view.rows, view.columns, terms.map(({rows, columns}) => ({rows: runsAt(rows), columns: runsAt(columns)})))
  markCell(seen, ...size, row, column)
}

// == choosing layers and channels

async function openLayer(position, wanted = null) {
  complain("")
  opened = position
  ui.sections.forEach((section, at) => section.classList.toggle("current", at === position))
  ui.links.forEach((link, at) => (link.ariaCurrent = at === position))
  reveal(ui.links[position])
  const found = await layerAt(position).catch(error => complain(`This layer is damaged (${error.message}): write the page again.`))
  if (!found || opened !== position) return // another one was chosen meanwhile
  layer = found
  channel = wanted
  cell = null
  active = screens.filter(setView)
  find(".sprites", ui.sections[position]).before(ui.explorer)
  ui.main.scrollTop = 0
  redraw(wanted !== null)
  if (wanted !== null) reveal(find(".selected", ui.grids))
  setTimeout(() => layerAt((position + 1) % data.layers.length).catch(() => 0), 100)
}

function setView(screen, position) {
  const view = layer.views.find(x => x.photograph === position), fields = data.fields[view?.fields]
  const pictured = data.photographs[position].size, size = pictured ?? fields?.size
  Object.assign(screen, {view, fields, size, what: pictured ? "photograph" : "input"})
  screen.grid.hidden = screen.pair.hidden = !view
  screen.seen.hidden = !size
  return view
}

function redraw(isKept = false) {
  shown = shownChannels()
  scaleFor = scalesOf(layer.views)
  if (!isKept && !shown.includes(channel)) channel = shown[0]
  const count = `${shown.length} of ${layer.channels} channels, ${total(layer.flat, Number)} without contrast`
  ui.shown.textContent = words([count, !layer.orders[choices.order] && ui.shown.dataset.many], "; ")
  const [low, middle, high] = ui.toolbar.elements.normalize.selectedOptions[0].dataset.ends.split("|")
  drawLegend(ui.toolbar, [low, `${middle} ${ui.toolbar.elements.scale_over.selectedOptions[0].dataset.of}`, high])
  active.forEach(drawGrid)
  drawChannel()
}

function selectChannel(number) {
  channel = number
  if (cell) cell.number = number
  drawChannel()
  keepAddress()
}

function moveChannel(steps) {
  selectChannel(shown[within(shown.indexOf(channel) + steps, 0, shown.length - 1)])
  reveal(find(".selected", ui.grids))
}

function moveLayer(step) {
  let at = opened + step
  while (ui.links[at]?.parentNode.hidden) at += step
  if (ui.links[at]) goTo(at)
}

function moveCell(down, across) {
  const {view, row, column} = cell ?? {view: layer.views[0], row: 0, column: 0}
  const place = {row: within(row + down, 0, view.rows - 1), column: within(column + across, 0, view.columns - 1)}
  cell = {view, number: channel, ...place}
  showCell()
}

function goTo(position) {
  if (ui.list.contains(document.activeElement)) ui.links[position].focus({preventScroll: true})
  openLayer(position)
  const address = addressOf(data.layers[position])
  if (!isInline && address !== location.hash) history.pushState(null, "", address)
}

const addressOf = ({name}) => `#${encodeURIComponent(name)}`

// Browsers refuse addresses that change too often.
const keepAddress = rested(150, () => {
  if (!isInline && layer.name === data.layers[opened].name) history.replaceState(null, "", `${addressOf(layer)}/${channel}`)
})

// `#name` or `#name/channel`; a slash in a name is encoded.
function followAddress() {
  const address = location.hash.slice(1), [, name, number] = /^(.*)\/(\d+)$/.exec(address) || []
  const positionOf = text => data.layers.findIndex(x => x.name === decode(text)), whole = positionOf(address)
  const part = number ? positionOf(name) : -1, isChannel = number < data.layers[part]?.channels
  openLayer(isChannel ? part : max(whole, part, 0), isChannel ? Number(number) : null)
  if (whole < 0 && !isChannel && !["", "what-was-run"].includes(address)) complain(`${decode(address)} is not on this page.`)
}

function decode(text) {
  try {
    return decodeURIComponent(text)
  } catch {
    return text // written by hand: a percent sign is one
  }
}

// == search, by the selection language of onnxfeat/layers/selection.py

function globOf(pattern) {
  const inner = pattern.replace(/\[(!?)(\]?[^\]]*)\]|[^]/g, (part, not, set) => {
    if (set) return `[${not && "^"}${set.replace(/[\\^\][]/g, "\\$&")}]`
    return {"*": ".*", "?": "."}[part] || part.replace(/[^\w\s]/, "\\$&")
  })
  return new RegExp(`^(?:${inner})$`, "s")
}

function matching(term) {
  const {layers} = data, [, prefix, rest] = /^(kind|op|re):(.*)$/s.exec(term) || []
  const named = test => layers.filter(x => test(x.name) || (x.source && test(x.source)))
  if (prefix === "kind") return layers.filter(x => rest === "any" || x.kind === rest || (rest === "vector" && x.is_vector))
  if (prefix === "op") return layers.filter(x => x.op_type === rest)
  if (prefix === "re") { // as Python writes them
    const pattern = new RegExp(rest.replace(/\\A/g, "^").replace(/\\Z/g, "$").replace(/\(\?P</g, "(?<"))
    return named(name => pattern.test(name))
  }
  if (/^-?\d+$|^(-?\d+)?:(-?\d+)?$/.test(term)) {
    const [start, stop = start + 1 || Infinity] = term.split(":").map((x, at) => (x ? Number(x) : [0, Infinity][at]))
    return layers.filter(x => /conv|pool/.test(x.kind)).slice(start, stop)
  }
  const glob = globOf(term), found = layers.filter(x => x.name === term || glob.test(x.name)), word = term.toLowerCase()
  return found.length ? found : named(name => glob.test(name) || (!/[*?[]/.test(term) && name.toLowerCase().includes(word)))
}

function search() {
  const terms = (ui.search.value.trim() || "kind:any").split(",").map(term => term.trim()), chosen = new Set(), problems = []
  if (terms[0][0] === "!") terms.unshift("kind:conv", "kind:pool", "!kind:vector")
  for (const term of terms) {
    const bare = term.replace(/^!/, "")
    try {
      const found = bare ? matching(bare) : []
      if (!found.length && !bare.startsWith("kind:")) problems.push(bare ? `no layer matches ${bare}` : "a term is empty")
      for (const one of found) chosen[bare === term ? "add" : "delete"](one)
    } catch (error) {
      problems.push(error.message) // of a regular expression
    }
  }
  ui.links.forEach((link, at) => (link.parentNode.hidden = !chosen.has(data.layers[at])))
  ui.found.textContent = words([...problems, `${chosen.size || "no layer"} of ${data.layers.length} layers`], "; ")
}

// == controls

// Colors that diverge from the middle where that is 0.
const suitedColors = () => (choices.normalize === "symmetric" ? "coolwarm" : "viridis")

function choose({name, value}) {
  const suited = suitedColors()
  choices[name] = name === "zoom" || name === "top" ? max(floor(value), 0) : value
  if (choices.colors === suited) choices.colors = ui.toolbar.elements.colors.value = suitedColors()
  redraw()
  keepAddress()
}

async function copy({target: button}) {
  const lines = button.previousElementSibling
  let isCopied = true
  try {
    await (isInline ? Promise.reject() : navigator.clipboard.writeText(lines.textContent))
  } catch { // refused or not there, as in a frame
    getSelection().selectAllChildren(lines)
    isCopied = document.execCommand("copy")
  }
  button.textContent = isCopied ? "Copied" : "Press Ctrl+C"
  setTimeout(() => (button.textContent = "Copy"), 2500)
}

function changeTheme() {
  const theme = {auto: "light", light: "dark", dark: "auto"}[ui.theme.textContent]
  dark.media.mediaText = {auto: "screen and (prefers-color-scheme: dark)", light: "not all", dark: "screen"}[theme]
  ui.theme.textContent = theme
}

const actions = {
  ArrowUp: [moveLayer, -1], ArrowDown: [moveLayer, 1], ArrowLeft: [moveChannel, -1], ArrowRight: [moveChannel, 1],
  ShiftArrowUp: [moveCell, -1, 0], ShiftArrowDown: [moveCell, 1, 0], ShiftArrowLeft: [moveCell, 0, -1], ShiftArrowRight: [moveCell, 0, 1],
  Home: [moveChannel, -Infinity], End: [moveChannel, Infinity], t: [changeTheme],
  "/": [() => ui.search.focus()], "?": [() => ui.keys.showModal()],
  copy: [copy], run: [() => (isInline ? ui.main.scrollTo(0, 1e6) : find(".run").scrollIntoView())], layer: [event => goTo(ui.links.indexOf(event.target.closest("a")))],
}

function act(event, name) {
  const [call, ...steps] = actions[name]
  event.preventDefault()
  call(...steps, event)
}

const isModified = event => event.ctrlKey || event.altKey || event.metaKey

const events = {
  hashchange: followAddress,
  resize: rested(60, () => layer && redraw(true)),
  input: ({target}) => (target === ui.search ? search() : choose(target)),
  pointermove: event => layer && point(event),
  click(event) {
    const name = event.target.closest("[data-click]")?.dataset.click
    if (name && !isModified(event) && !event.shiftKey) act(event, name)
    else if (layer) point(event)
  },
  keydown(event) {
    const {key, target} = event, name = event.shiftKey && key.startsWith("Arrow") ? `Shift${key}` : key
    if (isModified(event) || ui.keys.open || !layer) return
    if (!target.matches("input, select")) return name in actions && act(event, name)
    if (key === "Escape") {
      if (target === ui.search) ui.search.value = ""
      search()
      target.blur()
    }
    if (key === "Enter" && target === ui.search) ui.links.find(link => !link.parentNode.hidden)?.click()
  },
}

function screenOf(photograph, position) {
  const grid = ui.grids.children[position], pair = all(".pair")[position], [seen, large] = all(".stage", pair)
  if (photograph.size) seen.firstElementChild.src = find(`[data-photograph="${position}"]`).getAttribute("src")
  return {grid, pair, seen, large}
}

function start() {
  data = JSON.parse(find('script[type="application/json"]').textContent)
  ui = Object.fromEntries(all("[data-ui]").map(element => [element.dataset.ui, element]))
  Object.assign(ui, {sections: all("section.layer"), links: all('[data-click="layer"]')})
  choices = {...data.style, zoom: 0}
  for (const control of ui.toolbar.elements) control.value = choices[control.name] ?? ""
  dark = [...document.styleSheets[0].cssRules].find(rule => rule.media)
  screens = data.photographs.map(screenOf)
  for (const name in events) addEventListener(name, events[name])
  followAddress()
}
