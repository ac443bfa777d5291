from .deployment import Deployment as Deployment
from .loss_curves import LossCurves as LossCurves
from .result import Report as Report
from .result import StageResult as StageResult
from .result import read_report as read_report
from .search_files import write_findings as write_findings
from .search_findings import SearchFindings as SearchFindings
from .write import write_report as write_report
