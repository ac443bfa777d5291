from .cut import apply_cut as apply_cut
from .inputs import Inputs as Inputs
