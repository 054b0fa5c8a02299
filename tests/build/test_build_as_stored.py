"""Two processes build a model with weights as stored, and shard it; a failed check fails their launch."""

from pathlib import Path

import stored_models
from processes import run_in_two


def test_two_processes_build_the_model_of_one_from_mapped_weights(tmp_path: Path) -> None:
    run_in_two(stored_models.__file__, tmp_path)
