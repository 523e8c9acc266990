"""The mathematics of rectified flow, and of the formulations that it is compared with.

One convention, here and everywhere: ``t = 0`` is data and ``t = 1`` is noise,

    z_t = (1 - t) x0 + t eps,        v = dz_t/dt = eps - x0,

so sampling integrates dz = v dt from t = 1 down to t = 0 (paper section 2).

Every other path z = a x0 + b eps is this one at another time and scale: z / (a + b) lies on it at tau = b / (a + b).
So a formulation only says at which tau the network is trained, how z is scaled for it, what its output means and how
its error is weighed; samplers, guidance and the validation loss see velocities on the straight path alone.
"""
