import numpy as np

from anomalyd.training.history import filled

nan = np.nan
VALUES = np.array([[nan, 1, nan], [2, nan, nan], [nan, nan, nan], [3, 4, nan]])


def test_a_missing_value_is_the_last_known_one() -> None:
    np.testing.assert_array_equal(filled(VALUES), [[2, 1, 0], [2, 1, 0], [2, 1, 0], [3, 4, 0]])


def test_what_stands_in_front_is_known_and_nothing_later_is() -> None:
    np.testing.assert_array_equal(filled(VALUES, np.array([7.0, 8, 9])), [[7, 1, 9], [2, 1, 9], [2, 1, 9], [3, 4, 9]])
