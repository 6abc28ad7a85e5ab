"""Loss histories from lists of losses."""

from rewarm.study.loss_history import Baseline, LossHistory, LossPoint
from rewarm.study.run_outcomes import RunOutcome


def history(*losses, tokens_per_step=100):
    """Returns losses measured before step 1 and after every step."""
    points = [LossPoint(step, step * tokens_per_step, loss) for step, loss in enumerate(losses)]
    return LossHistory(points, Baseline(losses[0]))


def outcome(tokens_per_step=100, stream_digest="digest", **losses):
    """Returns a run's losses by validation set."""
    histories = {
        name: history(*values, tokens_per_step=tokens_per_step) for name, values in losses.items()
    }
    steps = max(len(values) for values in losses.values()) - 1
    return RunOutcome(histories, stream_digest, steps, None)
