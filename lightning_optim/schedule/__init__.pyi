from .base import Schedule as Schedule
from .constant import Constant as Constant
from .cosine import Cosine as Cosine
from .cubic import Cubic as Cubic
from .exponential import Exponential as Exponential
from .iterative import Iterative as Iterative
from .linear import Linear as Linear
from .steps import Steps as Steps
