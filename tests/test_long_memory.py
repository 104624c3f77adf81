"""The benchmark of long memory: its loops compute what torch computes, and what it reports is learned and repeatable."""

from dataclasses import replace

import pytest
import torch

from benchmarks.long_memory import CELLS, Network, Run, carried_table, gradient_table, sequences, solved_table, train
from benchmarks.recurrence import Weights

CELL = "lstm anomalyd"


@pytest.fixture(scope="module")
def run() -> Run:
    return train(CELL, 10, 0, 400, clip=1.0, longer=(20,))


@pytest.mark.parametrize("cell", CELLS)
def test_answers_and_gradients_are_those_of_torch(cell: str) -> None:
    network = Network(cell, seed=1)
    x, _ = sequences(40, torch.Generator().manual_seed(2))
    network(x).sum().backward()
    ours = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    h, _ = network.layer(x.transpose(1, 2))
    answer = network.head(h[-1])[:, 0]
    answer.sum().backward()

    torch.testing.assert_close(network(x), answer, rtol=0, atol=1e-5)
    for parameter, gradient in zip(network.parameters(), ours, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", ["rnn", "gru", CELL])
def test_a_truncated_gradient_changes_no_answer_but_ends_where_it_is_cut(cell: str) -> None:
    network = Network(cell, seed=1)
    x, _ = sequences(40, torch.Generator().manual_seed(2))
    answers, gradients = [], []
    for reach in (None, 8):
        network.zero_grad()
        answers.append(network(x, reach))
        answers[-1].sum().backward()
        gradient = Weights.of(network.layer).w_ih.grad
        assert gradient is not None
        gradients.append(gradient[:, 1].abs().max().item())  # of the mark, which is at the first step only

    torch.testing.assert_close(*answers, rtol=0, atol=1e-6)
    assert gradients[0] > 0
    assert gradients[1] == 0


def test_a_lag_of_ten_is_learned(run: Run) -> None:
    assert run.solved
    assert run.loss < 0.1
    assert run.updates < 400


def test_equal_seeds_give_equal_runs(run: Run) -> None:
    assert train(CELL, 10, 0, 400, clip=1.0, longer=(20,)) == run
    assert train(CELL, 10, 1, 20, clip=1.0).loss != train(CELL, 10, 2, 20, clip=1.0).loss


def test_without_the_budget_to_learn_it_is_chance() -> None:
    untrained = train(CELL, 100, 0, 1, clip=1.0)

    assert not untrained.solved
    assert untrained.accuracy[100] == pytest.approx(0.5, abs=0.1)


def test_tables_count_seeds_and_show_their_spread(run: Run) -> None:
    failed = replace(run, seed=1, updates=400, accuracy={10: 0.5, 20: 0.25}, largest=4321.0, exploded=3, not_finite=2)
    beyond = replace(run, lag=300, reach=128, accuracy={300: 0.75})

    assert f"| {CELL} | yes | 1/1 in {run.updates} |" in solved_table([run], [10])
    assert f"| {CELL} | yes | 1/2, 50 to 100 % |" in solved_table([run, failed], [10])
    assert f"| {CELL} | yes | 3 of 400; 4.3e+03, 2 not finite |" in gradient_table([failed], [10])
    assert f"| {CELL} |  | 75 % | 50 % |" in carried_table([failed], [beyond], [10])
