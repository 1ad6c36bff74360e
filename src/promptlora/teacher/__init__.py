"""The cache of a teacher's log-probabilities, its reader, and the teacher that runs during training.

The teacher reads the prompt and the input in its context and gives the distribution of every answer token. The student
sees only the input and has the prompt's adapter. This package knows tokenizers, rows and a causal model that it is
given; it knows nothing of where models come from, of LoRA, or of the training loop.
"""

from promptlora.host import float32_head as float32_head
from promptlora.teacher.cache import TeacherCache as TeacherCache
from promptlora.teacher.identity import TeachConfig as TeachConfig
from promptlora.teacher.identity import check_same_tokenizer as check_same_tokenizer
from promptlora.teacher.online import OnlineTeacher as OnlineTeacher
from promptlora.teacher.online import teacher_targets as teacher_targets
from promptlora.teacher.rows import key_of as key_of
from promptlora.teacher.rows import teacher_context as teacher_context
from promptlora.teacher.vllm_client import VllmTeacher as VllmTeacher
from promptlora.teacher.writing import Taught as Taught
from promptlora.teacher.writing import teach as teach
