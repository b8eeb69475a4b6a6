"""What a step leaves behind beside its numbers, and what is not held against one that was replayed."""

from grpo_jax.loop.logbook import _judged


def test_the_gap_of_a_replayed_step_is_shown_to_no_alert():
    row = {"step": 3, "replayed": 1.0, "logp_gap/mean": 0.2, "logp_gap/max": 3.0, "reward/mean": 0.5}
    assert _judged(row) == {"step": 3, "replayed": 1.0, "reward/mean": 0.5}
    for own in ({**row, "replayed": 0.0}, {"step": 3, "logp_gap/max": 3.0}):
        assert _judged(own) == own
