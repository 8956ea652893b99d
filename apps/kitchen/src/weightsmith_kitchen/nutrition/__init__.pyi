from .checks import energy_notes as energy_notes, sodium_mg as sodium_mg
from .pricing import price as price
from .table import Match as Match, NutritionTable as NutritionTable
