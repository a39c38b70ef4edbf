"""The checker catches what it is for: each planted violation is found, and nothing else is."""

import copy

import history
import pytest


def expected():
    return history.Expected(
        tokens={0: [5, 6, 7, 8], 1: [15, 16, 17]},
        logprobs={0: [-0.5, -1.25, -0.125, -2.0], 1: [-0.25, -0.5, -1.0]},
        text={0: "abcd", 1: "efg"},
        finished={0: ("length", None, None), 1: ("stop", 3, None)})


def undisturbed():
    wanted = expected()
    record = history.Record("request-1", "sampled", wanted)
    for choice, tokens in wanted.tokens.items():
        for position, token in enumerate(tokens):
            record.piece(choice, position, token, wanted.logprobs[choice][position])
        record.text[choice] = wanted.text[choice]
        record.finished[choice] = [wanted.finished[choice]]
    record.outcomes.append(history.FINISHED)
    return record


def kinds(record, leftovers=()):
    kept = history.History()
    kept.records.append(record)
    return {violation.what for violation in kept.check(leftovers)}


def test_an_undisturbed_record_is_right():
    assert kinds(undisturbed(), [history.Leftover("block-0", "KV pages", 0)]) == set()


def test_a_cancelled_record_is_right_as_far_as_it_goes():
    record = undisturbed()
    record.pieces = record.pieces[:2]
    record.finished.clear()
    record.outcomes = [history.CANCELLED]
    record.expected_outcomes = (history.FINISHED, history.CANCELLED)
    assert kinds(record) == set()


def plant_gap(record):
    del record.pieces[1]


def plant_repeat(record):
    record.pieces.insert(2, copy.copy(record.pieces[1]))


def plant_swapped_choice(record):
    first, other = record.pieces[1], record.pieces[5]
    first.token, other.token = other.token, first.token


def plant_wrong_token(record):
    record.pieces[2].token = 99


def plant_wrong_logprob(record):
    record.pieces[2].logprob = -0.12500001


def plant_missing_outcome(record):
    record.outcomes.clear()


def plant_second_outcome(record):
    record.outcomes.append(history.FINISHED)


def plant_failure(record):
    record.outcomes = ["INTERNAL: token workers died"]


def plant_wrong_text(record):
    record.text[0] = "abd"


@pytest.mark.parametrize("plant, what", [
    (plant_gap, "gap"),
    (plant_repeat, "repeat"),
    (plant_swapped_choice, "swapped choice"),
    (plant_wrong_token, "wrong token"),
    (plant_wrong_logprob, "wrong log-probability"),
    (plant_missing_outcome, "missing outcome"),
    (plant_second_outcome, "several outcomes"),
    (plant_failure, "failed"),
    (plant_wrong_text, "wrong text"),
])
def test_a_planted_violation_is_found(plant, what):
    record = undisturbed()
    plant(record)
    assert kinds(record) == {what}


@pytest.mark.parametrize("what", ["KV pages", "rows", "streams"])
def test_what_is_left_behind_is_found(what):
    assert kinds(undisturbed(), [history.Leftover("block-1", what, 3)]) == {f"leaked {what}"}


def test_an_answer_that_ends_early_is_a_gap():
    record = undisturbed()
    record.pieces.pop()
    assert kinds(record) == {"gap"}


def test_what_an_earlier_record_showed_is_what_a_later_one_is_compared_with():
    assert history.expected_of(undisturbed()) == expected()


def test_a_record_whose_pieces_are_let_go_is_still_judged():
    kept = history.History(keep_pieces=False)
    for plant in (None, plant_gap):
        record = undisturbed()
        if plant is not None:
            plant(record)
        kept.records.append(record)
        kept.end(record)
        assert not record.pieces and not record.text
    assert {violation.what for violation in kept.check()} == {"gap"}
    assert kept.records[0].tokens == 7


def test_who_asks_again_from_the_beginning_repeats_nothing():
    record = undisturbed()
    record.restart()
    again = undisturbed()
    record.pieces, record.text, record.finished = again.pieces, again.text, again.finished
    assert kinds(record) == set()
