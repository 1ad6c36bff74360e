"""Evaluation: conditions and controls, scores, and the report."""

from promptlora.evaluate.answers import Answer as Answer
from promptlora.evaluate.answers import AnswerFile as AnswerFile
from promptlora.evaluate.answers import reuse_baselines as reuse_baselines
from promptlora.evaluate.conditions import CONDITIONS as CONDITIONS
from promptlora.evaluate.conditions import DEFAULT_CONDITIONS as DEFAULT_CONDITIONS
from promptlora.evaluate.evaluation import complete_answers as complete_answers
from promptlora.evaluate.evaluation import evaluate as evaluate
from promptlora.evaluate.evaluation import rescore as rescore
from promptlora.evaluate.prompts import choose_examples as choose_examples
from promptlora.evaluate.prompts import permute_tasks as permute_tasks
from promptlora.evaluate.report import Report as Report
from promptlora.evaluate.report import constant_scores as constant_scores
from promptlora.evaluate.report import summarize as summarize
from promptlora.evaluate.report import task_scores as task_scores
from promptlora.evaluate.scores import best_constant as best_constant
from promptlora.evaluate.scores import bootstrap_interval as bootstrap_interval
from promptlora.evaluate.scores import constant_score as constant_score
from promptlora.evaluate.scores import exact_match as exact_match
from promptlora.evaluate.scores import first_line as first_line
from promptlora.evaluate.scores import normalize as normalize
from promptlora.evaluate.scores import ratio_interval as ratio_interval
from promptlora.evaluate.scores import rouge_l as rouge_l
from promptlora.evaluate.scores import score as score
from promptlora.evaluate.sources import read_tasks as read_tasks
