"""Run the command line: `python -m onnxfeat`."""

from onnxfeat.cli import main

if __name__ == "__main__":
    main()
