from .evaluate import Metrics as Metrics
from .run import Recipe as Recipe
from .stage import Stage as Stage
from .trials import TrialSearch as TrialSearch
from .weights import load_trained as load_trained
