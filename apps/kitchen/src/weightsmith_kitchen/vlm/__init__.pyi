from .model import VisionPrefixLM as VisionPrefixLM
from .scores import ListScores as ListScores, score_lists as score_lists
from .training import paper_learning_rate as paper_learning_rate
