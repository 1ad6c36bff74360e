"""Training: one loop, three objectives, callbacks, checkpoints, and measurements of how much prompts steer."""

from promptlora.schedule import learning_rate_factor as learning_rate_factor
from promptlora.train.callbacks import Callback as Callback
from promptlora.train.callbacks import StepMetrics as StepMetrics
from promptlora.train.checkpoints import FINAL_FOLDER as FINAL_FOLDER
from promptlora.train.checkpoints import read_metrics as read_metrics
from promptlora.train.config import TrainConfig as TrainConfig
from promptlora.train.instruments import margin_shift as margin_shift
from promptlora.train.trainer import Trainer as Trainer
