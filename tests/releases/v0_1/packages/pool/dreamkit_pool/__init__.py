from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_projectors():
    return [Component("pool", "dreamkit_pool.pool:Pool", "averages neighbouring tokens")]
