"""Small models of every kind that onnxfeat has rules for, and small pictures of every format: what the fuzz damages."""

from __future__ import annotations

import io
import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from PIL import Image

from onnxfeat import expose

ROOT = Path(__file__).parent.parent
X = "float[N,3,16,16] x"
Y = "float[N,M,A,B] y"

# Name to text; W7x3x3x3 stands for an initializer of that shape, Q7 and U7 for int8 and uint8 ones.
TEXTS = {
    "plain": f"""g ({X}) => (float[N,10] y) {{ c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, W8x3x3x3, W8)
        b = BatchNormalization(c, W8, W8, W8, W8) r = Relu(b) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
        g1 = GlobalAveragePool(p) f = Flatten(g1) y = Gemm(f, W8x10) }}""",
    "residual": f"""g ({X}) => ({Y}) {{ a = Conv(x, W8x3x1x1) s = Sigmoid(a) m = Mul(a, s)
        b = Conv<pads=[1,1,1,1]>(m, W8x8x3x3) e = Add(b, a) r = Relu(e)
        q = ReduceMean<axes=[2,3], keepdims=1>(r) k = Conv(q, W8x8x1x1) h = HardSigmoid(k) y = Mul(r, h) }}""",
    "gelu": f"""g ({X}) => ({Y}) {{ a = Conv(x, W8x3x3x3) two = Constant<value_float=1.41421>()
        d = Div(a, two) e = Erf(d)
        one = Constant<value_float=1.0>() f = Add(e, one) h = Mul(a, f)
        half = Constant<value = float {{0.5}}>() i = Mul(h, half) y = PRelu(i, W8x1x1) }}""",
    "branches": f"""g ({X}, bool up) => ({Y}) {{ c = Conv(x, W8x3x3x3)
        z = If<then_branch = t () => (float[N,M,A,B] u) {{ v = Conv(c, W8x8x3x3) u = Relu(v) }},
               else_branch = e () => (float[N,M,A,B] w) {{ w = MaxPool<kernel_shape=[3,3]>(c) }}>(up)
        y = Tanh(z) }}""",
    "loop": f"""g ({X}) => ({Y}) {{ n = Constant<value_int=3>() go = Constant<value = bool {{1}}>()
        z = Loop<body = l (int64 i, bool k, float[N,3,16,16] s) => (bool k2, float[N,3,16,16] s2)
            {{ k2 = Identity(k) t = Conv<pads=[1,1,1,1]>(s, W3x3x3x3) s2 = Relu(t) }}>(n, go, x)
        y = Conv(z, W4x3x3x3) }}""",
    "function": f"""g ({X}) => ({Y}) {{ c = local.block<pads=[1,1,1,1]>(x, W8x3x3x3) d = local.outer(c, W8x8x3x3)
        y = MaxPool<kernel_shape=[2,2]>(d) }}
        <domain: "local", opset_import: ["" : 17]> block <pads>(i, w) => (o)
        {{ c = Conv<pads : ints = @pads>(i, w) o = Relu(c) }}
        <domain: "local", opset_import: ["" : 17, "local" : 1]> outer (i, w) => (o)
        {{ a = local.block<pads=[0,0,0,0]>(i, w) o = Sigmoid(a) }}""",
    "qdq": f"""g ({X}) => ({Y}) {{ sc = Constant<value_float=0.05>() zp = Constant<value = uint8 {{128}}>()
        xq = QuantizeLinear(x, sc, zp) xd = DequantizeLinear(xq, sc, zp) wd = DequantizeLinear<axis=0>(Q8x3x3x3, W8, Q8)
        c = Conv(xd, wd) r = Relu(c) rq = QuantizeLinear(r, sc, zp) rd = DequantizeLinear(rq, sc, zp)
        p = MaxPool<kernel_shape=[2,2]>(rd) pq = QuantizeLinear(p, sc, zp) y = DequantizeLinear(pq, sc, zp) }}""",
    "qoperator": f"""g ({X}) => ({Y}) {{ sc = Constant<value_float=0.05>() zp = Constant<value = uint8 {{128}}>()
        xq = QuantizeLinear(x, sc, zp) c = QLinearConv(xq, sc, zp, Q8x3x3x3, sc, qz, sc, zp)
        a = com.microsoft.QLinearAdd(c, sc, zp, c, sc, zp, sc, zp) y = DequantizeLinear(a, sc, zp)
        qz = Constant<value = int8 {{0}}>() }}""",
    "dynamic": f"""g ({X}) => ({Y}) {{ q, s, z = DynamicQuantizeLinear(x) c = ConvInteger(q, U8x3x3x3, z)
        f = Cast<to=1>(c) m = Mul(f, s) y = LeakyRelu(m) }}""",
    "shapes": f"""g ({X}) => ({Y}) {{ c = ConvTranspose<strides=[2,2]>(x, W3x8x3x3)
        k = Constant<value_floats=[1.0,1.0,2.0,2.0]>() r = Resize(c, "", k)
        sh = Shape(r) t = ConstantOfShape(sh) u = Add(r, t) pd = Constant<value_ints=[0,0,1,1,0,0,1,1]>() p = Pad(u, pd)
        rp = Constant<value_ints=[1,1,2,2]>() ti = Tile(p, rp) big = Constant<value_ints=[1,8,1,1]>()
        v = Expand(ti, big)
        y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(v) }}""",
    "audio": """g (float[1,2,64] x) => (float[1,M,A] y) { c = Conv<strides=[2]>(x, W8x2x5) r = Relu(c)
        y = AveragePool<kernel_shape=[2]>(r) }""",
    "volume": """g (float[1,1,8,8,8] x) => (float[1,M,A,B,C] y) { c = Conv(x, W4x1x3x3x3)
        y = MaxPool<kernel_shape=[2,2,2]>(c) }""",
    "tokens": f"""g ({X}) => (float[N,T,C] y) {{ c = Conv<strides=[4,4]>(x, W8x3x4x4)
        sh = Constant<value_ints=[0,8,-1]>() f = Reshape(c, sh) t = Transpose<perm=[0,2,1]>(f)
        n = LayerNormalization(t, W8, W8) m = MatMul(n, W8x8) y = Add(m, t) }}""",
    "last": """g (float[N,16,16,3] x) => (float[N,A,B,M] y) { t = Transpose<perm=[0,3,1,2]>(x) c = Conv(t, W8x3x3x3)
        r = Clip(c, lo, hi) y = Transpose<perm=[0,2,3,1]>(r) lo = Constant<value_float=0.0>()
        hi = Constant<value_float=6.0>() }""",
    "half": """g (float16[N,3,16,16] x) => (float[N,M,A,B] y) { w = Cast<to=10>(W8x3x3x3) c = Conv(x, w) r = Relu(c)
        y = Cast<to=1>(r) }""",
    "open": """g (float[N,3,H,W] x, float extra) => (float[N,M,A,B] y) { c = Conv(x, W8x3x3x3) m = Mul(c, extra)
        y = GlobalMaxPool(m) }""",
}

_DTYPES = {"W": np.float32, "Q": np.int8, "U": np.uint8}


def model_of(text: str) -> onnx.ModelProto:
    """Return a model whose initializers the text names by type and shape; the numbers are seeded."""
    domains = '"" : 17, "local" : 1, "com.microsoft" : 1'
    model = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{domains}]> {text}")
    numbers = np.random.default_rng(0)
    for name in sorted(set(re.findall(r"\b[WQU]\d[\dx]*\b", text))):
        shape = [int(side) for side in name[1:].split("x")]
        array = numbers.normal(0, 0.4, shape) if name[0] == "W" else numbers.integers(0, 9, shape)
        if name.startswith("W") and len(shape) == 1:
            array = np.abs(array) + 0.01  # scales and variances
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(_DTYPES[name[0]]), name))
    return model


@cache
def models() -> dict[str, bytes]:
    """Return name to model file, small ones first."""
    found = {name: model_of(text).SerializeToString() for name, text in TEXTS.items()}
    found["scoped"] = _scoped(found["residual"]).SerializeToString()
    found["external"] = _external(found["plain"]).SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("plain", "qdq", "branches"):
            inputs = ["up"] if name == "branches" else []
            expose(found[name], Path(folder, f"{name}.onnx"), inputs=inputs, layers="kind:conv,kind:pool")
            found[f"exposed {name}"] = Path(folder, f"{name}.onnx").read_bytes()
    for name in ("shapes_reference_layers", "shapes_small"):
        found[name] = (ROOT / "models" / f"{name}.onnx").read_bytes()
    return found


def _scoped(content: bytes) -> onnx.ModelProto:
    """Put the module paths of PyTorch's exporter into a model."""
    model = onnx.load_from_string(content)
    for number, node in enumerate(model.graph.node):
        scopes = ["", f"layer{number % 3}", f"layer{number % 3}.{number}", f"{node.op_type.lower()}_{number}"]
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(scopes))
        node.name = f"/layer{number % 3}/layer{number % 3}.{number}/{node.op_type}"
    return model


def _external(content: bytes) -> onnx.ModelProto:
    """Let the first weight of a model be in `w.bin`, which `external_data` gives."""
    model = onnx.load_from_string(content)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "W8x3x3x3")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "16"), ("length", "864")):
        tensor.external_data.add(key=key, value=value)
    return model


def external_data() -> bytes:
    """Return the bytes of `w.bin`."""
    return bytes(16) + np.linspace(-1, 1, 216, dtype=np.float32).tobytes()


@cache
def pictures() -> dict[str, bytes]:
    """Return file name to the content of a small picture or array."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 24, 3), np.uint8)
    image = Image.fromarray(pixels)
    found = {}
    for file, given, options in (
        ("rgb.png", image, {}),
        ("palette.png", image.quantize(16), {"transparency": 3}),
        ("deep.png", Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 100), {}),
        ("gray.jpg", image.convert("L"), {}),
        ("rgb.jpg", image, {"progressive": True}),
        ("rgb.webp", image, {"lossless": True}),
        ("rgb.gif", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        ("rgb.bmp", image, {}),
        ("rgb.tif", image, {"compression": "tiff_lzw"}),
        ("gray.tif", image.convert("L"), {"compression": "tiff_deflate"}),
        ("rgb.ppm", image, {}),
        ("icon.ico", image, {}),
        ("rgb.tga", image, {}),
    ):
        stream = io.BytesIO()
        format_ = {"jpg": "JPEG", "tif": "TIFF"}.get(file[-3:], file.rpartition(".")[2].upper())
        given.save(stream, format=format_, **options)
        found[file] = stream.getvalue()
    for file, array in (
        ("picture.npy", pixels),
        ("input.npy", np.random.default_rng(2).random((1, 3, 16, 16), np.float32)),
        ("fortran.npy", np.asfortranarray(np.ones((1, 3, 16, 16), np.float64))),
    ):
        stream = io.BytesIO()
        np.save(stream, array)
        found[file] = stream.getvalue()
    return found
