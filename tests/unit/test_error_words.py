"""What a library says of a failure, in one line."""

from __future__ import annotations

from segship.errors import last_line

OPENCV = """OpenCV(4.14.0) /io/opencv/modules/dnn/src/onnx/onnx_importer.cpp:1064: error: (-2:Unspecified error) in function 'x'
> Node [Resize@ai.onnx]:(upsample) parse error: OpenCV(4.14.0) error: (-2:Unspecified error) in function 'y'
> > HCHW layout is expected (expected: 'shapes.total() == (size_t)4'), where
> >     'shapes.total()' is 2
> """


def test_the_cause_stands_last() -> None:
    assert last_line(ValueError("Traceback:\n  a\n  b\nthe cause\n\n")) == "the cause"
    assert last_line(ValueError()) == "ValueError"
    assert last_line(ValueError(">\n---\n")) == "ValueError"
    assert len(last_line(ValueError("x" * 1000))) == 200


def test_opencv_quotes_the_cause_first() -> None:
    assert last_line(ValueError(OPENCV)).startswith("Node [Resize@ai.onnx]:(upsample) parse error")
