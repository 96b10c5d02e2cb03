"""Convert what a file asks for, and write the record or the error into another: a process of `other_backends`."""

import pickle
import sys
from pathlib import Path

from onnxfeat.converter.conversion import convert_keras
from onnxfeat.errors import OnnxfeatError
from onnxfeat.findings import Conversion


def main(request: Path, answer: Path) -> None:
    """Convert what the request file asks for; write the record, or the error, into the answer file."""
    saved, path, options = pickle.loads(request.read_bytes())  # noqa: S301  # written by our parent into its own folder
    try:
        result: Conversion | OnnxfeatError = convert_keras(saved, path, **options)
    except OnnxfeatError as error:
        result = error
    answer.write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
