"""Words of kitchens and of tables: other names, defaults, and what changes a food or leaves it the same."""

SAME = {
    "aubergine": "eggplant",
    "capsicum": "pepper",
    "catsup": "ketchup",
    "chile": "chili",
    "chilli": "chili",
    "chily": "chili",  # the singular of "chilies" by its ending
    "chilly": "chili",
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
    "burger bun": "hamburger bun",
    "breadcrumb": "bread crumb dry grated plain",
    "bread crumb": "bread crumb dry grated plain",
    "cayenne pepper": "spices pepper red or cayenne",
    "cayenne": "spices pepper red or cayenne",
    "coconut milk": "coconut milk used in cooking",
    "marinara sauce": "tomato products canned sauce",
    "chili flake": "spices pepper red or cayenne",
    "red pepper flake": "spices pepper red or cayenne",
    "self rising flour": "wheat flour white all purpose self rising",
    "self raising flour": "wheat flour white all purpose self rising",
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
    "yolk": "egg yolk",
    "vanilla pod": "vanilla bean",
    "vanilla paste": "vanilla extract",
    "vanilla bean paste": "vanilla extract",
    "vanilla": "vanilla extract",
    "neutral oil": "vegetable oil",
    "cooking oil": "vegetable oil",
    "frying oil": "vegetable oil",
    "oil": "vegetable oil",
    "whipping cream": "heavy cream",
    "double cream": "heavy cream",
    "steak": "beef steak",
    "cheddar": "cheddar cheese",
    "emmental": "swiss cheese",
    "emmentaler": "swiss cheese",
    "emmenthal": "swiss cheese",
    "emmenthaler": "swiss cheese",
    "emmental cheese": "swiss cheese",
    "emmentaler cheese": "swiss cheese",
    "parmesan": "parmesan cheese",
    "mozzarella": "mozzarella cheese",
    "feta": "feta cheese",
    "red pepper": "bell pepper",
    "green pepper": "bell pepper",
    "yellow pepper": "bell pepper",
    "salt pepper": "salt",
    "cumin powder": "ground cumin",
}
"""Short names, and the one that the weights of cups and pieces are looked up by."""
ROWS = {
    "wine": "Alcoholic beverage, wine, table, all",
    "lentil": "Lentils, dry",
    "cooked lentil": "Lentils, from dried, no added fat",
    "lemonade": "Lemonade, fruit flavored drink",
    "water chestnut": "Waterchestnuts, chinese, (matai), raw",
    "canned water chestnut": "Waterchestnuts, chinese, (matai), raw",
    "popcorn kernel": "Popcorn, air-popped, no butter added",
    "bittersweet chocolate": "Chocolate, dark, 60-69% cacao solids",
    "elbow macaroni": "Pasta, dry, enriched",
    "masa harina": "Corn flour, masa, enriched, white",
    "agave": "Sweetener, syrup, agave",
    "agave nectar": "Sweetener, syrup, agave",
    "agave syrup": "Sweetener, syrup, agave",
    "crab": "Crustaceans, crab, blue, raw",
    "crab meat": "Crustaceans, crab, blue, raw",
    "crabmeat": "Crustaceans, crab, blue, raw",
    "lasagna": "Pasta, dry, enriched",
    "lasagna sheet": "Pasta, dry, enriched",
    "lasagna noodle": "Pasta, dry, enriched",
    "green chili": "Peppers, chili, green, canned",
    "canned green chili": "Peppers, chili, green, canned",
    "cola": "Beverages, carbonated, cola, regular",
    "canned cola": "Beverages, carbonated, cola, regular",
    "coke": "Beverages, carbonated, cola, regular",
    "canned coke": "Beverages, carbonated, cola, regular",
    "soda": "Beverages, carbonated, cola, regular",
    "canned soda": "Beverages, carbonated, cola, regular",
    "ginger ale": "Beverages, carbonated, ginger ale",
    "canned ginger ale": "Beverages, carbonated, ginger ale",
    "whipped cream": "Cream, whipped",
    "steak": "Beef, steak, NFS",
    "stewing steak": "Beef, steak, chuck",
    "shrimp": "Crustaceans, shrimp, raw",
    "breakfast sausage": "Pork sausage, link/patty, unprepared",
    "milk powder": "Milk, dry, whole, without added vitamin D",
    "powdered milk": "Milk, dry, whole, without added vitamin D",
    "dry milk": "Milk, dry, whole, without added vitamin D",
    "pita": "Bread, pita",
    "hot sauce": "Hot pepper sauce",
    "hot dog bun": "Roll, white, hot dog bun",
    "hot chocolate": "Hot chocolate / cocoa, NFS",
    "hot cocoa": "Hot chocolate / cocoa, NFS",
    "hot chili": "Peppers, hot chili, red, raw",
    # Raw meat of the same fatness: the rows named stew meat, and beef, are of cooked meat.
    "beef": "Beef, top sirloin steak, raw",
    "beef stew meat": "Beef, top sirloin steak, raw",
    "stew beef": "Beef, top sirloin steak, raw",
    "stew meat": "Beef, top sirloin steak, raw",
    "stewing beef": "Beef, top sirloin steak, raw",
    "stewing meat": "Beef, top sirloin steak, raw",
    "braising steak": "Beef, top sirloin steak, raw",
    "ground beef": "Beef, ground, raw",
    "beef ground": "Beef, ground, raw",
    "chicken thigh": "Chicken, thigh, meat and skin, raw",
    "bone in chicken thigh": "Chicken, thigh, meat and skin, raw",
    "skin on chicken thigh": "Chicken, thigh, meat and skin, raw",
    "bone in skin on chicken thigh": "Chicken, thigh, meat and skin, raw",
    "skin on bone in chicken thigh": "Chicken, thigh, meat and skin, raw",
    "boneless skinless chicken thigh": "Chicken, thigh, boneless, skinless, raw",
    "skinless boneless chicken thigh": "Chicken, thigh, boneless, skinless, raw",
    "chicken thigh boneless skinless": "Chicken, thigh, boneless, skinless, raw",
    "chicken thigh skinless boneless": "Chicken, thigh, boneless, skinless, raw",
    "skinless chicken thigh": "Chicken, thigh, boneless, skinless, raw",
    "chicken thigh fillet": "Chicken, thigh, boneless, skinless, raw",
    "chicken drumstick": "Chicken, drumstick, meat and skin, raw",
    "drumstick": "Chicken, drumstick, meat and skin, raw",
    "chicken leg": "Chicken, drumstick, meat and skin, raw",
    "burger": "Hamburger, NFS",
    # Meat with some of the skin: the row of the whole bird is of its skin only.
    "roasted chicken": "Chicken breast, rotisserie, skin eaten",
    "rabbit": "Game meat, rabbit, wild, raw",
    "rabbit leg": "Game meat, rabbit, wild, raw",
    "rabbit meat": "Game meat, rabbit, wild, raw",
    "duck leg": "Duck, wild, meat and skin, raw",
    "crab stick": "Imitation crab meat",
    "surimi stick": "Imitation crab meat",
    # Starch with a little color and flavor.
    "custard powder": "Cornstarch",
    # Oil with an aroma.
    "truffle oil": "Olive oil",
    # Suet that is melted and strained; no table has it raw.
    "suet": "Fat, beef tallow",
    "beef suet": "Fat, beef tallow",
    "shredded suet": "Fat, beef tallow",
    "lardon": "Pork, cured, bacon, unprepared",
    "chili oil": "Vegetable oil, NFS",
    "red chili": "Peppers, hot chili, red, raw",
    "full fat milk": "Milk, whole",
    "tomato ketchup": "Ketchup",
    "corn kernel": "Corn, sweet, yellow, raw",
    "rapeseed oil": "Canola oil",
    "groundnut oil": "Peanut oil",
    "thai fish sauce": "Fish sauce",
    "bulgur wheat": "Bulgur, dry",
    "broad bean": "Broadbeans, immature seeds, raw",
    "semi skimmed milk": "Milk, reduced fat (2%)",
    "star anise": "Spices, anise seed",
    "cumin powder": "Spices, cumin seed",
    "black pudding": "Blood sausage",
    "soured cream": "Cream, sour, cultured",
    "sparkling water": "Water, carbonated, plain",
    "ice water": "Water, NFS",
    "ice cold water": "Water, NFS",
    "ground coriander": "Spices, coriander seed",
    # No table has the pod; its extract tastes and counts as much.
    "vanilla bean": "Vanilla extract",
    "vanilla pod": "Vanilla extract",
    "vanilla paste": "Vanilla extract",
    "vanilla bean paste": "Vanilla extract",
    "dry mustard": "Spices, mustard seed, ground",
    "mustard powder": "Spices, mustard seed, ground",
    "ground mustard": "Spices, mustard seed, ground",
    "whole milk": "Milk, whole",
    "canned kidney bean": "Kidney beans, from canned, no added fat",
    "canned white bean": "White beans, from canned, no added fat",
    "canned cannellini bean": "White beans, from canned, no added fat",
    "canned pinto bean": "Pinto beans, from canned, no added fat",
    "burger patty": "Beef, ground, patty",
    "beef patty": "Beef, ground, patty",
    "hamburger patty": "Beef, ground, patty",
    "caramel sauce": "Caramel dip, regular",
    "baby potato": "Potatoes, red, without skin, raw",
    "new potato": "Potatoes, red, without skin, raw",
    "80 20 ground beef": "Beef, ground, 80% lean meat / 20% fat, raw",
    "80% lean ground beef": "Beef, ground, 80% lean meat / 20% fat, raw",
    "85 15 ground beef": "Beef, ground, raw",
    "85% lean ground beef": "Beef, ground, raw",
    "90 10 ground beef": "Beef, ground, 90% lean meat / 10% fat, raw",
    "90% lean ground beef": "Beef, ground, 90% lean meat / 10% fat, raw",
    "lean ground beef": "Beef, ground, 90% lean meat / 10% fat, raw",
    "canned chicken broth": "Soup, chicken broth, ready-to-serve",
    "canned broth": "Soup, chicken broth, ready-to-serve",
    "bacon": "Pork, cured, bacon, unprepared",
    "streaky bacon": "Pork, cured, bacon, unprepared",
    "bean": "Kidney beans, NFS",
    "beef broth": "Soup, beef broth, cubed, prepared with water",
    # The table has no dry chickpeas; their flour has the same energy, the other rows are of cooked ones.
    "dried chickpea": "Chickpea flour (besan)",
    "dry chickpea": "Chickpea flour (besan)",
    "dried bean": "Beans, navy, mature seeds, raw",
    "dry bean": "Beans, navy, mature seeds, raw",
    "dry kidney bean": "Beans, kidney, all types, mature seeds, raw",
    "dry white bean": "Beans, white, mature seeds, raw",
    "dried black bean": "Beans, black, mature seeds, raw",
    "dry black bean": "Beans, black, mature seeds, raw",
    "dried kidney bean": "Beans, kidney, all types, mature seeds, raw",
    "dried lentil": "Lentils, dry",
    "dry lentil": "Lentils, dry",
    "dried white bean": "Beans, white, mature seeds, raw",
    "bread": "Bread, white",
    "bread flour": "Wheat flour, white, bread, enriched",
    "broth": "Soup, chicken broth, ready-to-serve",
    "canned black bean": "Black beans, from canned, no added fat",
    "canned chickpea": "Chickpeas, from canned, no added fat",
    "canned tomato": "Tomatoes, crushed, canned",
    "cheese": "Cheese, Cheddar",
    "chicken": "Chicken as ingredient in recipes",
    "chicken breast": "Chicken, breast, boneless, skinless, raw",
    "chicken broth": "Soup, chicken broth, ready-to-serve",
    "chili": "Peppers, hot chili, red, raw",
    "chili flake": "Spices, pepper, red or cayenne",
    "chip": "Snacks, potato chips, plain, salted",
    "chocolate": "Candies, semisweet chocolate",
    "cod": "Fish, cod, Atlantic, raw",
    "coffee": "Coffee, brewed",
    "cooked pasta": "Pasta, cooked",
    "cooked rice": "Rice, white, cooked, no added fat",
    "cream": "Cream, light",
    "creme fraiche": "Cream, sour, full fat",
    "crisp": "Snacks, potato chips, plain, salted",
    "fish": "Fish, NFS",
    "flour": "Wheat flour, white, all-purpose, unenriched",
    "ginger": "Ginger root, raw",
    "golden syrup": "Syrup, Cane",
    "ground": "Beef, ground, raw",
    "hamburger bun": "Roll, white, hamburger bun",
    "ice": "Water, NFS",
    "jalapeno": "Peppers, jalapeno, raw",
    "leek": "Leeks, (bulb and lower leaf-portion), raw",
    "macaroni": "Pasta, dry, enriched",
    "mozzarella": "Cheese, Mozzarella, NFS",
    "nutella": "Chocolate hazelnut spread",
    "oil": "Vegetable oil, NFS",
    "pasta": "Pasta, dry, enriched",
    "pepper": "Spices, pepper, black",
    "potato": "Potatoes, red, without skin, raw",
    "salmon": "Fish, salmon, raw",
    "salt pepper": "Salt, table",
    "self rising flour": "Wheat flour, white, all-purpose, unenriched",
    "self raising flour": "Wheat flour, white, all-purpose, unenriched",
    "soy milk": "Soy milk, unsweetened",
    "spaghetti": "Pasta, dry, enriched",
    "strong flour": "Wheat flour, white, bread, enriched",
    "strong white flour": "Wheat flour, white, bread, enriched",
    "syrup": "Syrups, maple",
    "tea": "Beverages, tea, black, ready to drink",
    "tofu": "Tofu, extra firm, prepared with nigari",
    "tomato sauce": "Tomato products, canned, sauce",
    "vegetable broth": "Soup, vegetable broth, ready to serve",
    "zucchini": "Squash, summer, zucchini, includes skin, raw",
} | dict.fromkeys(
    ("rice", "basmati rice", "jasmine rice", "long grain rice", "white rice", "arborio rice", "risotto rice"),
    "Rice, white, long grain, unenriched, raw",
)
ROWS |= dict.fromkeys(("cherry tomato", "plum tomato", "roma tomato", "grape tomato"), "Tomatoes, raw")
ROWS |= dict.fromkeys(("chestnut mushroom", "cremini mushroom", "button mushroom"), "Mushrooms, raw")
ROWS |= dict.fromkeys(
    ("light brown sugar", "dark brown sugar", "soft brown sugar", "light soft brown sugar", "soft light brown sugar"),
    "Sugars, brown",
)
ROWS |= dict.fromkeys(("light soy sauce", "dark soy sauce"), "Soy sauce")
ROWS |= dict.fromkeys(("light olive oil", "mild olive oil"), "Olive oil")
ROWS |= dict.fromkeys(("rice vinegar", "sherry vinegar", "malt vinegar", "champagne vinegar"), "Vinegar")
ROWS |= dict.fromkeys(
    ("baking potato", "king edward potato", "maris piper potato", "jersey royal potato", "yukon gold potato"),
    "Potatoes, flesh and skin, raw",
)
ROWS |= dict.fromkeys(("filo pastry", "filo dough", "phyllo pastry"), "Phyllo dough")
ROWS |= dict.fromkeys(("sugar snap pea", "snow pea", "mangetout"), "Peas, edible-podded, raw")
ROWS |= dict.fromkeys(("smoked paprika", "sweet paprika"), "Spices, paprika")
ROWS |= dict.fromkeys(("cardamom seed", "cardamom pod"), "Spices, cardamom")
ROWS |= dict.fromkeys(
    ("emmental", "emmentaler", "emmenthal", "emmenthaler", "emmental cheese", "emmentaler cheese"), "Cheese, Swiss"
)
ROWS |= dict.fromkeys(("canned tuna", "canned tuna in water", "tuna in water"), "Fish, tuna, canned")
ROWS |= dict.fromkeys(("raspberry jam", "strawberry jam"), "Jam")
ROWS |= dict.fromkeys(("tuna steak", "fresh tuna"), "Fish, tuna, raw")
ROWS |= dict.fromkeys(("dijon mustard", "wholegrain mustard", "whole grain mustard"), "Mustard")
"""Names that would fit many rows as well, and the row that a recipe means by default."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DIET = _words("vegan vegetarian meatless imitation substitute")
"""Words that a name and its row share, or neither has."""
DROPPED = _words(
    """fillet fillets filet filets unsalted boiling hot cold warm lukewarm iced salted fresh freshly ripe organic
    quality good best boneless skinless extra virgin pure natural homemade store bought finely coarsely roughly
    chopped diced sliced minced grated shredded crumbled melted softened beaten peeled trimmed rinsed drained halved
    quartered packed sifted toasted"""
)
"""Words of a cook's name that say how the food is prepared, not which it is; kept where no other is left."""
VARIETIES = _words(
    """red white yellow green purple dark golden spring flat leaf flatleaf curly free range baby soft italian
    coarse fine floury waxy flaked clear runny mature unwaxed vine ripened pitted english japanese spanish greek thai
    asian wild tiger king superfine strong strength style made fruity kosher rock semisweet kind ground bone on
    stalk sprig clove bunch head floret rib handful thick thin long short young old little crusty unpeeled
    undrained cubed crushed cut size sized piece room temperature chilled"""
)
"""Words of a cook's name that tell a variety or a shape: a row without them is still a row of the food."""
NAMED = {
    "hot": _words(
        "sauce dog dogs pepper peppers chili chilies chilli chillies chile chiles chocolate cocoa fudge mustard"
    ),
    "iced": _words("tea coffee"),
    "cold": _words("cuts"),
}
"""Such words that belong to the food before these: hot sauce."""
KINDS = _words("paste dough")
"""Words that tell the kind of a food, and nothing about what it is made of: curry paste is no almond paste."""
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
