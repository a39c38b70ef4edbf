"""The played day: what it makes of bad arguments, and that more load takes more workers."""

import json

import pytest
import simulate_autoscaler


@pytest.mark.parametrize("arguments, words", [
    (["--interval=0"], "--interval has to be above 0"),
    (["--peak=-1"], "--peak has to be above 0"),
    (["--target-rows=0"], "one of the targets"),
])
def test_a_number_that_cannot_be_is_named(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        simulate_autoscaler.main(arguments)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_table_that_is_none_is_named(tmp_path):
    bad = tmp_path / "steps.txt"
    for text, words in ((None, "No such file"), ("1 4.1\nx 16\n", "steps.txt:2: not a number"),
                        ("1 4.1\n64\n", "steps.txt:2: not a number"), ("# none\n", "has no rows")):
        if text is not None:
            bad.write_text(text)
        with pytest.raises(SystemExit, match=words):
            simulate_autoscaler.main([f"--steps={bad}"])


def test_a_higher_day_takes_more_workers(capsys):
    hours = []
    for peak in (20_000, 40_000):
        assert simulate_autoscaler.main([f"--peak={peak}"]) == 0
        hours.append(json.loads(capsys.readouterr().out)["worker_hours"])
    assert hours[0] < hours[1] < 3 * hours[0]
