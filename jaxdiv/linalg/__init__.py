"""Matrix-free linear algebra on pytrees: one linear solve, curvature products, Krylov, sketching."""

from jaxdiv.linalg.count_sketch import CountSketch as CountSketch
from jaxdiv.linalg.count_sketch import count_sketch as count_sketch
from jaxdiv.linalg.dense import materialize as materialize
from jaxdiv.linalg.gaussian_sketch import GaussianSketch as GaussianSketch
from jaxdiv.linalg.gaussian_sketch import gaussian_sketch as gaussian_sketch
from jaxdiv.linalg.hutchinson import hutchinson_diagonal as hutchinson_diagonal
from jaxdiv.linalg.hutchinson import hutchinson_trace as hutchinson_trace
from jaxdiv.linalg.hutchinson import rademacher as rademacher
from jaxdiv.linalg.hutchpp import hutchpp as hutchpp
from jaxdiv.linalg.lanczos import Eigenpairs as Eigenpairs
from jaxdiv.linalg.lanczos import Tridiagonal as Tridiagonal
from jaxdiv.linalg.lanczos import eigsh as eigsh
from jaxdiv.linalg.lanczos import lanczos as lanczos
from jaxdiv.linalg.products import empirical_fisher_operator as empirical_fisher_operator
from jaxdiv.linalg.products import fisher_operator as fisher_operator
from jaxdiv.linalg.products import gauss_newton_operator as gauss_newton_operator
from jaxdiv.linalg.products import gnvp as gnvp
from jaxdiv.linalg.products import hessian_operator as hessian_operator
from jaxdiv.linalg.products import hvp as hvp
from jaxdiv.linalg.refine import SolveInfo as SolveInfo
from jaxdiv.linalg.slq import SpectralDensity as SpectralDensity
from jaxdiv.linalg.slq import spectral_density as spectral_density
from jaxdiv.linalg.solve import solve as solve
from jaxdiv.linalg.srht import SRHT as SRHT
from jaxdiv.linalg.srht import srht as srht
from jaxdiv.linalg.srht import walsh_hadamard as walsh_hadamard
