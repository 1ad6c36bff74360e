"""Training: one loop, three objectives, checkpoints, and the instruments that show steering."""

from promptlora.training.checkpoints import FINAL_FOLDER as FINAL_FOLDER
from promptlora.training.checkpoints import read_metrics as read_metrics
from promptlora.training.instruments import margin_shift as margin_shift
from promptlora.training.schedule import learning_rate_factor as learning_rate_factor
from promptlora.training.trainer import StepMetrics as StepMetrics
from promptlora.training.trainer import Trainer as Trainer
