"""Photos to foods: reading photos, boxes, folders of labeled photos, and the classifier (DeepFood)."""
