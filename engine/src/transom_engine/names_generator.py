"""Names for containers that were given none: an adjective and a surname, ``steady_hopper``.

The people are scientists, engineers and sailors. The module costs nothing to import: random bytes come from the
kernel, not from `random`, which would load the whole of hashlib.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

ADJECTIVES = (
    "able agile alert amber ample apt ardent astute avid azure balanced bold brave breezy bright brisk calm candid "
    "canny careful casual cheerful chipper civil clear clever coastal composed cordial cosy courteous crisp curious "
    "dapper daring deft devoted diligent dreamy droll eager earnest easy elated eloquent even exact fair famous "
    "fearless fervent festive fine fleet fluent fond frank fresh frugal gallant generous gentle genial gifted glad "
    "gleaming graceful gracious grand great hardy hearty helpful honest hopeful humble jaunty jolly jovial keen kind "
    "lively loyal lucid lucky lunar mellow merry mild mindful mirthful modest neat nimble noble patient peaceful "
    "perky placid playful plucky poised polite proud prudent quick quiet radiant ready relaxed sage sanguine sedate "
    "serene sharp shining silent sincere smart snug solar sound spirited splendid spry steady stellar sterling "
    "stoic sturdy subtle sunny swift tactful tender thrifty tidal tidy tranquil trim trusting upbeat urbane valiant "
    "verdant vibrant vigilant vivid warm watchful whimsical willing windward wise witty worthy zealous zesty"
).split()

SURNAMES = (
    "abel agnesi alhazen ampere anning archimedes aristarchus avicenna babbage banneker bardeen bartik bassi "
    "beaufort bell bernoulli bessel bhabha blackburn bligh bohr boltzmann boole bose bowditch boyle brahe brunel "
    "cabot cannon cantor carson cartwright cassini cauchy cavendish cerf chandrasekhar chatelet cohn columbus cook "
    "copernicus cori cousteau cray curie dalton darwin diesel diffie dijkstra dirac drake edison ehrlich einstein "
    "engelbart erdos ericsson eriksson euclid euler faraday fermat fermi feynman fibonacci fisher fitzroy fleming "
    "fourier franklin fresnel fulton galileo galois gauss germain gibbs goddard goldberg goodall hadamard hahn "
    "halley hamilton hamming harrison harvey heisenberg henry herschel hertz hodgkin hooke hopper hoover hubble "
    "hudson humboldt huygens hypatia jemison jennings johnson joliot joule kare kepler khayyam khorana kilby kirch "
    "knuth kolmogorov kovalevskaya lagrange lamarr lamport lander laplace laperouse lavoisier leakey leavitt "
    "leibniz lewin linnaeus liskov lister lovelace lumiere magellan marconi maxwell mayer mcclintock mcnulty meitner "
    "mendel mendeleev mercator mirzakhani moitessier morse nansen napier nash newton nightingale nobel noether noyce "
    "ohm oppenheimer ostwald panini pascal pasteur pauli pavlov payne perlman planck poincare ptolemy pythagoras "
    "raman ramanujan ride riemann ritchie roentgen rubin rutherford sagan sammet sanger seaborg shannon shaw shockley "
    "sinoussi slocum snell somerville stokes strutt swartz tereshkova tesla thales tharp thompson torvalds turing "
    "varahamihira vaughan volta wallace watt wegener wescoff wiles wilson wing wozniak wright wu yalow yonath zeppelin"
).split()


def generate(*, taken: Callable[[str], bool]) -> str:
    """Return a name for which `taken` says false.

    A name that is taken gets a digit, and more digits for as long as that is taken too, so that it always ends.
    """
    adjective, surname, digits = os.urandom(4), os.urandom(4), ""
    name = f"{_pick(ADJECTIVES, adjective)}_{_pick(SURNAMES, surname)}"
    while taken(name + digits):
        digits += str(os.urandom(1)[0] % 10)
    return name + digits


def _pick(words: Sequence[str], noise: bytes) -> str:
    return words[int.from_bytes(noise, "big") % len(words)]
