from .capture import Captured as Captured
from .capture import capture_network as capture_network
from .coupling import Coupling as Coupling
from .coupling import couple as couple
from .group import Group as Group
from .group import keep_channels as keep_channels
