import io
import json
import logging

import pytest

from moorage_csi import logs


def line(style: str, message: str, *, exc: bool = False, **extra: object) -> str:
    stream = io.StringIO()
    logger = logging.Logger("moorage_csi.test")  # noqa: LOG001 - one that nobody else has
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.Formatter("json" if style == "json" else "text"))
    logger.addHandler(handler)
    logger.warning(message, extra=extra, exc_info=exc)
    return stream.getvalue()


def test_a_text_line_ends_with_its_fields_quoted_where_needed() -> None:
    said = line("text", "answered", method="Probe", path="/a/b", reason='a "b"\nc', empty="")
    assert said.endswith(' WARNING moorage_csi.test answered method=Probe path=/a/b reason="a \\"b\\"\\nc" empty=""\n')
    assert said.count("\n") == 1


def test_a_message_with_a_line_break_stays_one_line() -> None:
    assert line("text", "one\ntwo\x1b[31m").count("\n") == 1


@pytest.mark.parametrize("value", ["plain", "a\nb", '"', 3, None, {"a": object}])
def test_a_json_line_is_json_with_the_fields(value: object) -> None:
    said = json.loads(line("json", "answered", field=value))
    assert said["message"] == "answered"
    assert said["level"] == "warning"
    assert "field" in said


def test_a_traceback_is_a_field_in_json_and_follows_in_text() -> None:
    try:
        int("why")
    except ValueError:
        assert "ValueError: invalid" in json.loads(line("json", "failed", exc=True))["traceback"]
        assert line("text", "failed", exc=True).endswith("'why'\n")
