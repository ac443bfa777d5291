from .penalty.base import Penalized as Penalized
from .penalty.base import Penalty as Penalty
from .penalty.group_lasso import GroupLasso as GroupLasso
from .penalty.l1 import L1 as L1
from .penalty.l2 import L2 as L2
from .penalty.orthogonal import Orthogonal as Orthogonal
from .penalty.slimming import Slimming as Slimming
from .penalty.spectral_norm import SpectralNorm as SpectralNorm
