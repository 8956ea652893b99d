"""Words of kitchens and of tables: other names, defaults, and what changes a food or leaves it the same."""

SAME = {
    "aubergine": "eggplant",
    "capsicum": "pepper",
    "catsup": "ketchup",
    "chile": "chili",
    "chilli": "chili",
    "cilantro": "coriander",
    "cornflour": "cornstarch",
    "courgette": "zucchini",
    "garbanzo": "chickpea",
    "gherkin": "pickle",
    "maize": "corn",
    "mince": "ground",
    "minced": "ground",
    "prawn": "shrimp",
    "rocket": "arugula",
    "scallion": "onion",
    "swede": "rutabaga",
    "yoghurt": "yogurt",
    "beetroot": "beet",
    "linseed": "flaxseed",
    "porridge": "oatmeal",
    "stock": "broth",
    "confectioner": "powdered",
    "sauteed": "cooked",
    "rotisserie": "roasted",
}
"""British and other names: both sides of a comparison are read this way."""
PHRASES = {
    "plain flour": "all-purpose flour",
    "self raising flour": "self-rising flour",
    "wholemeal": "whole wheat",
    "caster sugar": "granulated sugar",
    "icing sugar": "powdered sugar",
    "confectioners sugar": "powdered sugar",
    "confectioners' sugar": "powdered sugar",
    "double cream": "heavy cream",
    "single cream": "light cream",
    "heavy whipping cream": "heavy cream",
    "bicarbonate of soda": "baking soda",
    "baking soda": "leavening agents baking soda",
    "baking powder": "leavening agents baking powder",
    "spring onion": "onions spring or scallions",
    "green onion": "onions spring or scallions",
    "scallion": "onions spring or scallions",
    "sultana": "raisin",
    "soya sauce": "soy sauce",
    "rind of orange": "orange peel",
    "orange zest": "orange peel",
    "orange rind": "orange peel",
    "lemon zest": "lemon peel",
    "lemon rind": "lemon peel",
    "lime zest": "lemon peel",
    "ice cube": "water",
    "crushed ice": "water",
    "corn starch": "cornstarch",
    "kosher salt": "table salt",
    "sea salt": "table salt",
    "black pepper": "spices pepper black",
    "bell pepper": "peppers sweet",
    "breadcrumb": "bread crumb dry grated plain",
    "bread crumb": "bread crumb dry grated plain",
    "cayenne pepper": "spices pepper red or cayenne",
    "cayenne": "spices pepper red or cayenne",
    "coconut milk": "coconut milk used in cooking",
    "chili flake": "spices pepper red or cayenne",
    "red pepper flake": "spices pepper red or cayenne",
    "self rising flour": "wheat flour white all purpose self rising",
    "ground beef": "beef ground",
    "chicken broth": "soup chicken broth",
    "beef broth": "soup beef broth",
    "vegetable broth": "soup vegetable broth",
    "chicken stock": "soup chicken broth",
    "beef stock": "soup beef broth",
    "vegetable stock": "soup vegetable broth",
}
"""Names that share no word with the row they mean."""
BARE = {
    "bacon": "bacon cooked",
    "bread": "bread white",
    "cheese": "cheese cheddar",
    "chicken": "chicken as ingredient in recipes",
    "chocolate": "candies semisweet chocolate",
    "cream": "cream light",
    "broth": "soup chicken broth ready to serve",
    "fish": "fish nfs",
    "ginger": "ginger root raw",
    "pizza": "pizza cheese regular crust",
    "flour": "wheat flour white all purpose",
    "jalapeno": "peppers jalapeno raw",
    "kiwi": "kiwi fruit raw",
    "oil": "vegetable oil nfs",
    "pepper": "spices pepper black",
    "potato": "potato red without skin raw",
    "zucchini": "squash summer zucchini raw",
    "rice": "rice white medium grain raw unenriched",
    "basmati rice": "rice white medium grain raw unenriched",
    "long grain rice": "rice white medium grain raw unenriched",
    "spaghetti": "pasta dry enriched",
    "macaroni": "pasta dry enriched",
    "syrup": "syrup maple",
    "vanilla": "vanilla extract",
    "neutral oil": "vegetable oil nfs",
    "cooking oil": "vegetable oil nfs",
    "frying oil": "vegetable oil nfs",
    "tofu": "tofu extra firm prepared nigari",
}
"""Names that would fit many rows as well, and the one that a recipe means by default."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DROPPED = _words(
    """unsalted boiling hot cold warm lukewarm iced salted fresh freshly ripe organic quality good best boneless
    skinless extra virgin pure natural homemade store bought finely coarsely roughly chopped diced sliced minced
    grated shredded crumbled melted softened beaten peeled trimmed rinsed drained halved quartered packed sifted
    toasted"""
)
"""Words of a cook's name that say how the food is prepared, not which it is; kept where no other is left."""
PLAIN = _words(
    """raw nfs ns as to type of with without and or in the for all purpose regular plain fresh uncooked dry unprepared
    whole commercial varieties includes usda commodity ready eat serve added salt skin unspecified medium large common
    ingredient recipe enriched unenriched bleached salted table grade from a"""
)
"""Words of a row's name that make it no other food."""
RAW = _words("raw nfs uncooked unprepared dry")
PREPARED = _words(
    """cooked boiled roasted fried baked broiled grilled canned dehydrated dried frozen stewed steamed braised pickled
    sweetened candied glazed breaded microwaved toasted smoked powder powdered juice sauce soup dip salad sandwich
    cake cookie pie candy bread cracker chip snack restaurant fast babyfood baby substitute imitation reduced light
    low nonfat free drink beverage dressing flavored dessert formula mix concentrate diet infant toddler prepared
    spread crisp fritter ring croquette casserole stuffed oil flour syrup extract creamed topping muffin bun roll
    waffle lomi sushi patty loaf meatless topped filled cereal"""
)
"""Words that make a row another food, unless the cook says them."""
GROUPS = _words(
    """spice cheese nut seed fish crustacean mollusk vegetable fruit syrup oil herb bean leavening agent sweetener
    alcoholic beverage game"""
)
"""Words that tables put before the food: "Spices, cumin seed"."""
