"""Every setting of a run, as frozen dataclasses that check themselves.

A `ConfigDict` lives only at the edge, where absl flags override it; `from_config_dict` turns it into a `Config` and is
the only reader of one. Everything inside the package takes the dataclasses, so that a field has one name, one default,
one unit and one check. Fields whose default is None are derived from others; the comment says how.
"""

from mtp_jax.config.checks import check_choice, check_positive, check_seed, nearest
from mtp_jax.config.conversion import (
    FREE_ON_RESUME,
    default_config,
    differences,
    dumps,
    flatten,
    free_on_resume,
    from_config_dict,
    from_dict,
    to_config_dict,
    to_dict,
    with_defaults,
)
from mtp_jax.config.convert import ConvertConfig
from mtp_jax.config.data import DataConfig, MixtureConfig
from mtp_jax.config.evaluation import EvaluationConfig
from mtp_jax.config.generation import GenerationConfig
from mtp_jax.config.sections import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    InitFromConfig,
    LoggingConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
)

__all__ = ["CheckpointConfig", "ComputeConfig", "Config", "ConvertConfig", "DataConfig", "EvaluationConfig",
           "FREE_ON_RESUME", "GenerationConfig", "InitFromConfig", "LoggingConfig", "MixtureConfig", "ModelConfig",
           "ObjectiveConfig", "OptimizerConfig", "ParallelConfig", "TrainConfig", "check_choice", "check_positive",
           "check_seed", "default_config", "differences", "dumps", "flatten", "free_on_resume", "from_config_dict",
           "from_dict", "nearest", "to_config_dict", "to_dict", "with_defaults"]
