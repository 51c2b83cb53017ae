"""Steps and chains compile for an Ascend card, in simulation: the cells that differ most, each in its own process.

scripts/ascend_table.py has all of them, docs/ascend.md what a pass shows.
"""

import pytest
from compile_one import NARROW, compile_one
from stand_ins import build, obstacle

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    return build(tmp_path_factory.mktemp("stand_ins"))


# The most kernels that one call of the narrowed network launches, a few more than it does: fewer are faster, since a
# card waits for the host while batches are small.
@pytest.mark.parametrize("graph, config, ranks, most, switches", [
    ("train", "palette_62m", 1, 700, "training.precision=float16 model.channel_mults=[1] "
                                     "model.attention_resolutions=[]"),
    ("train", "palette_62m", 8, 1780, "training.precision=bfloat16 training.accumulation=2 training.recompute=1 "
                                      "training.shard_optimizer=true model.attention_resolutions=[]"),
    ("sample", "palette_62m", 1, 340, "training.precision=float16 sampling.guidance=2 sampling.dynamic_threshold=0.9 "
                                      "sampling.jit_level=O1"),
    ("sample", "palette_62m", 1, 650, "training.precision=bfloat16 sampling.reuse=2"),
])
def test_it_compiles_for_an_ascend_card(graph, config, ranks, most, switches, stand_ins, repository):
    outcome = compile_one(graph, repository / "configs" / f"{config}.yaml", [*NARROW, *switches.split()], stand_ins,
                          ranks)
    assert outcome.error is None
    assert 0 < sum(outcome.kernels.values()) <= most, outcome.kernels
    assert outcome.memory > 0


def test_what_does_not_compile_is_told(stand_ins, repository):
    outcome = compile_one("train", repository / "configs" / "palette_62m.yaml", ["model.norm_groupz=3"], stand_ins)
    assert "unknown key model.norm_groupz" in outcome.error and not outcome.kernels
