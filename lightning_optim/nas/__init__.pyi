from .result import Evaluation as Evaluation
from .result import SearchResult as SearchResult
from .selection import Selection as Selection
from .space.base import SearchDimension as SearchDimension
from .space.elastic_width import ElasticWidth as ElasticWidth
from .space.operation_choice import OperationChoice as OperationChoice
