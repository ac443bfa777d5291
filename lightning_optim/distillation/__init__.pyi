from .loss.base import Context as Context
from .loss.base import Loss as Loss
from .loss.soft_target import SoftTarget as SoftTarget
from .teacher.base import Teacher as Teacher
from .teacher.checkpoint import Checkpoint as Checkpoint
from .teacher.file import FileTeacher as FileTeacher
from .teacher.module import ModuleTeacher as ModuleTeacher
from .teacher.safetensors import Safetensors as Safetensors
