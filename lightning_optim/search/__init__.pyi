from .decision import Decision as Decision
from .pareto import pareto_front as pareto_front
from .strategy.base import SearchState as SearchState
from .strategy.base import Strategy as Strategy
from .strategy.evolution import Evolution as Evolution
from .strategy.random import RandomSearch as RandomSearch
