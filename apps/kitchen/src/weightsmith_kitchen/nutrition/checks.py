"""Rows of nutrition tables that contradict themselves."""

from __future__ import annotations

from weightsmith_kitchen.errors import NutritionError

__all__ = ["KILOJOULE", "energy_notes", "from_macronutrients", "sodium_mg"]

KILOJOULE = 4.184
"""Kilojoules in a kilocalorie."""
SALT_PER_SODIUM = 58.44 / 22.99
"""Molar mass of sodium chloride over that of sodium."""
SMALLEST = 20.0
"""Kilocalories per 100 g below which rounded macronutrients say nothing about energy."""


def from_macronutrients(protein: float | None, fat: float | None, carbohydrate: float | None) -> float | None:
    """Energy per 100 g by the general factors 4, 9 and 4 kcal per gram; None if one of the three is missing.

    Examples
    --------
    >>> from_macronutrients(10, 10, 10)
    170.0
    """
    if protein is None or fat is None or carbohydrate is None:
        return None
    return 4.0 * protein + 9.0 * fat + 4.0 * carbohydrate


def energy_notes(kcal: float | None, computed: float | None, kilojoules: float | None = None) -> tuple[str, ...]:
    """Say where an energy contradicts itself.

    Parameters
    ----------
    kcal : float or None
        As the table has it.
    computed : float or None
        From `from_macronutrients`. Alcohol, acids and fiber make it differ; only gross differences are named.
    kilojoules : float or None
        The same energy, where the table has both.

    Examples
    --------
    >>> energy_notes(720, None, 172)
    ('720 kcal do not fit 172 kJ: the two may be exchanged',)
    >>> energy_notes(1490, 352)
    ('1490 kcal look like kilojoules: protein, fat and carbohydrate give 352 kcal',)
    """
    notes = []
    if kcal is not None and kilojoules is not None and (kcal or kilojoules):
        factor = kilojoules / kcal if kcal else float("inf")
        if abs(factor - 1 / KILOJOULE) < 0.03:
            notes.append(f"{kcal:g} kcal do not fit {kilojoules:g} kJ: the two may be exchanged")
        elif not 3.7 <= factor <= 4.7:
            notes.append(f"{kcal:g} kcal do not fit {kilojoules:g} kJ: one kcal is {KILOJOULE} kJ")
    if kcal is not None and computed is not None and computed >= SMALLEST:
        ratio = kcal / computed
        if 3.6 <= ratio <= 4.8:
            notes.append(f"{kcal:g} kcal look like kilojoules: protein, fat and carbohydrate give {computed:.0f} kcal")
        elif ratio > 1.7 or ratio < 0.4:
            notes.append(f"{kcal:g} kcal, but protein, fat and carbohydrate give {computed:.0f} kcal")
    if kcal is not None and not notes and not 0 <= kcal <= 910:
        notes.append(f"{kcal:g} kcal per 100 g; pure fat has about 900")
    return tuple(notes)


def sodium_mg(amount: float, unit: str, *, salt: bool) -> float:
    """Sodium in milligrams from an amount of sodium or salt in any unit of mass.

    Parameters
    ----------
    amount : float
        >= 0.
    unit : str
        ``"mg"``, ``"g"``, ``"ug"``, or their full names.
    salt : bool
        The amount is of salt, not of sodium.

    Raises
    ------
    NutritionError
        If the unit is none of mass, or the amount negative.

    Examples
    --------
    >>> round(sodium_mg(3000, "mg", salt=True)), round(sodium_mg(3, "g", salt=True))
    (1180, 1180)
    """
    factors = {"ug": 1e-3, "µg": 1e-3, "mcg": 1e-3, "mg": 1.0, "milligram": 1.0, "g": 1e3, "gram": 1e3}
    name = unit.strip().lower().removesuffix("s") if len(unit) > 2 else unit.strip().lower()
    if name not in factors:
        raise NutritionError("unit of sodium", found=repr(unit), expected=", ".join(factors))
    if not amount >= 0:
        raise NutritionError("amount of sodium", found=amount, expected=">= 0")
    return amount * factors[name] / (SALT_PER_SODIUM if salt else 1.0)
