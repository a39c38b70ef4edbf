"""Growth shows, and what only fills at first does not."""

import resources


def samples(sizes, every_s=10.0):
    return [resources.Sample(index * every_s, 1, size, 14, 14) for index, size in enumerate(sizes)]


def test_the_slope_of_memory_is_that_of_a_line_through_it():
    assert abs(resources.slope_per_hour(samples([30 + 0.01 * i for i in range(100)])) - 3.6) < 1e-6


def test_memory_that_goes_up_and_down_has_no_slope():
    assert abs(resources.slope_per_hour(samples([30.0, 31.0, 31.0, 30.0]))) < 1e-6


def test_two_samples_tell_nothing():
    assert resources.slope_per_hour(samples([30.0, 40.0])) == 0


def test_a_slope_is_told_from_when_memory_has_filled():
    later = resources.warm(samples([10 + i for i in range(30)] + [40.0] * 60))
    assert later and resources.slope_per_hour(later) == 0
