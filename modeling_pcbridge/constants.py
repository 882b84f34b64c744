"""Physical constants and unit conversions. Inside the package: angstrom, eV, eV/angstrom."""

# CODATA 2018 values; each name states source and target unit.
HARTREE_TO_EV = 27.211386245988
BOHR_TO_ANGSTROM = 0.529177210903
KCAL_PER_MOL_TO_EV = 0.0433641042418009
HARTREE_PER_BOHR_TO_EV_PER_ANGSTROM = HARTREE_TO_EV / BOHR_TO_ANGSTROM
BOLTZMANN_EV_PER_KELVIN = 8.617333262145e-5
