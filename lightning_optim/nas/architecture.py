"""Architecture: a candidate of a search whose decisions are about a network."""

from lightning_optim.search.decision import Candidate

Architecture = Candidate
