from .callbacks.batch_mixer import BatchMixer as BatchMixer
from .callbacks.distillation_teacher import DistillationTeacher as DistillationTeacher
from .callbacks.dropout_scheduler import DropoutScheduler as DropoutScheduler
from .callbacks.nas_supernet import NASSupernet as NASSupernet
from .callbacks.penalty_regularizer import PenaltyRegularizer as PenaltyRegularizer
from .callbacks.pruning_scheduler import PruningScheduler as PruningScheduler
from .callbacks.qat_fake_quant import QATFakeQuant as QATFakeQuant
from .callbacks.sharpness_aware import SharpnessAware as SharpnessAware
from .surgery.select import Targets as Targets
from .window import Window as Window

__version__: str
