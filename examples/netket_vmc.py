"""NetKet: variational Monte Carlo of the J1-J2 model on a 4x4 lattice, by our optax transformation and two others.

python examples/netket_vmc.py [STEPS]
"""

import sys

import netket as nk
import optax

from frankenstein.optax import frankenstein

EXACT = -8.45792335  # in units of S.S, with J1 = 1 and J2 = 0.5; NetKet's Pauli matrices have four times that
# The sign rule of Marshall turns the signs of J1's terms: a network of real numbers then comes close.
n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60

lattice = nk.graph.Lattice(basis_vectors=[[1, 0], [0, 1]], extent=[4, 4], pbc=True, max_neighbor_order=2)
spins = nk.hilbert.Spin(0.5, lattice.n_nodes, total_sz=0)
hamiltonian = nk.operator.Heisenberg(spins, lattice, J=[0.25, 0.125], sign_rule=[True, False])

optimizers = {
    "Frankenstein": (frankenstein(1e-2, base_lr=1e-2), {}),
    "Adam": (optax.adam(1e-2), {}),
    "SGD with stochastic reconfiguration": (optax.sgd(5e-2), {"preconditioner": nk.optimizer.SR(diag_shift=0.01)}),
}
for name, (optimizer, options) in optimizers.items():
    machine = nk.models.RBM(alpha=2, param_dtype=float)
    sampler = nk.sampler.MetropolisExchange(spins, graph=lattice, n_chains=16)
    state = nk.vqs.MCState(sampler, machine, n_samples=1008, seed=0, sampler_seed=0)
    driver = nk.driver.VMC(hamiltonian, optimizer, variational_state=state, **options)
    driver.run(n_steps, show_progress=False)
    energy = state.expect(hamiltonian)
    error = (float(energy.mean.real) - EXACT) / abs(EXACT)
    print(f"{name:36}{energy.mean.real:9.4f} +- {energy.error_of_mean:.4f}, {error:.1%} above the exact energy")
