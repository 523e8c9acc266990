"""The mathematics of rectified flow.

One convention, here and everywhere: ``t = 0`` is data and ``t = 1`` is noise,

    z_t = (1 - t) x0 + t eps,        v = dz_t/dt = eps - x0,

so sampling integrates dz = v dt from t = 1 down to t = 0 (paper section 2).
"""
