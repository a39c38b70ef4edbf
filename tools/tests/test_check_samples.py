"""The share of words that occur in the corpus."""

import json

import check_samples


def test_counts_words_between_first_and_last():
    known = set(check_samples.words("The king's daughter went to the well-side."))
    counted, unknown = check_samples.check(["The King's dauhgter went to"], known)
    assert (counted, unknown) == (3, ["dauhgter"])
    assert check_samples.check(["xx the yy"], known, whole=True) == (3, ["xx", "yy"])


def test_reads_every_form_of_samples(tmp_path):
    forms = (
        {"choices": [{"text": "a b"}, {"text": "c"}], "usage": {}},
        ["a b", "c"],
        {"samples": [{"text": "a b", "prompt": "x"}, "c"]},
    )
    for form in forms:
        (tmp_path / "s.json").write_text(json.dumps(form))
        assert check_samples.read_samples(tmp_path / "s.json") == ["a b", "c"]
    (tmp_path / "s.json").write_text("\n".join(json.dumps({"text": t}) for t in ("a b", "c")))
    assert check_samples.read_samples(tmp_path / "s.json") == ["a b", "c"]


def test_command_fails_below_the_share_asked_for(tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("one two three four")
    (tmp_path / "s.json").write_text(json.dumps(["one two thre four"]))
    command = ["--corpus", str(tmp_path / "corpus.txt"), "--samples", str(tmp_path / "s.json")]
    assert check_samples.main(command + ["--least", "0.4"]) == 0
    assert json.loads(capsys.readouterr().out)["unknown"] == ["thre"]
    assert check_samples.main(command + ["--least", "0.9"]) == 1
