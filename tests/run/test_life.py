"""A module's life by dice: edits, forwards, failures, releases, sizes and plans in any order, beside an untouched twin.

No die depends on how long anything takes: every forward's plan is told, and the bus is not measured.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lib_async_mover.plan.workload import MIB
from tests.checked_backend import CheckedBackend
from tests.edits import CHANGES, EDITS
from tests.pair import Pair, hasty, replan, weight_bytes
from tests.small import Edit, image

SHARES = st.sampled_from((0.1, 0.25, 0.4, 0.9, 1.5))
SEEDS = st.integers(0, 20)
VERBS = st.sampled_from(("release", "invalidate_all", None))


class Cut(BaseException):
    """torch calls no hook after it."""


class Life(RuleBasedStateMachine):
    @initialize(share=SHARES, seed=SEEDS, warm=st.sampled_from((0, 1, 3)))
    def attach(self, share: float, seed: int, warm: int) -> None:
        self.pair = Pair(share=share, backend=CheckedBackend(poison=True, delay=hasty(seed)))
        self.forward(warm, seed, seed)

    @rule(times=st.integers(1, 3), seed=SEEDS, plan=SEEDS)
    def forward(self, times: int, seed: int, plan: int) -> None:
        for i in range(times):
            replan(self.pair.mover, plan)
            self.pair.run(seed=seed + i)

    @rule(change=st.sampled_from(CHANGES))
    def change_between_forwards(self, change: Edit) -> None:
        self.pair.both(change)

    @rule(edit=st.sampled_from((*EDITS, None)))
    def edit_inside_forwards(self, edit: Edit | None) -> None:
        self.pair.both(lambda model: model.edit_inside(edit))

    @rule(step=st.integers(0, 4), error=st.sampled_from((RuntimeError, Cut)), plan=SEEDS, verb=VERBS)
    def fail(self, step: int, error: type, plan: int, verb: str) -> None:
        """What a forward that was cut off left bound, the next verb or forward unbinds."""
        replan(self.pair.mover, plan)
        for model in (self.pair.model, self.pair.twin):
            model.fail_at, model.error = step, error()
            with pytest.raises(error):
                model(image())
            model.fail_at = None
        getattr(self.pair.mover, verb)() if verb else self.pair.run()

    @rule(path=st.lists(st.integers(0, 4), max_size=7))
    def run_another_path(self, path: list[int]) -> None:
        usual = self.pair.twin.path
        self.pair.both(lambda model: setattr(model, "path", path))
        self.pair.run()
        self.pair.both(lambda model: setattr(model, "path", usual))

    @rule(number=st.integers(0, 4))
    def call_a_part(self, number: int) -> None:
        x = torch.ones(3, 32)
        assert torch.equal(self.pair.model.blocks[number](x), self.pair.twin.blocks[number](x))

    @rule(share=SHARES)
    def choose_another_size(self, share: float) -> None:
        self.pair.mover.vram_mb = share * weight_bytes(self.pair.twin) / MIB

    @rule()
    def release(self) -> None:
        self.pair.mover.release()

    @rule()
    def write_through_data(self) -> None:
        self.pair.mover.backend.synchronize()
        self.pair.both(lambda model: [parameter.data.mul_(-1) for parameter in model.parameters()])
        self.pair.mover.invalidate_all()

    @rule()
    def look_at_the_weights(self) -> None:
        self.pair.mover.release()
        self.pair.check_weights()

    @invariant()
    def nothing_runs(self) -> None:
        assert not self.pair.mover.busy

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.forward(2, 0, 0)
            self.pair.check_weights()
            self.pair.close()
            self.pair.run()


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=50, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)  # fmt: skip
