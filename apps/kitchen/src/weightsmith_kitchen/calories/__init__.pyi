from .estimator import CalorieEstimator as CalorieEstimator, CalorieReport as CalorieReport
from .grammar import ListItem as ListItem, parse_list as parse_list
from .retrieve import CalorieIndex as CalorieIndex, Match as Match
from .table import CalorieTable as CalorieTable, Inconsistency as Inconsistency
from .validation import ListCheck as ListCheck, check_lists as check_lists, repair_fractions as repair_fractions
