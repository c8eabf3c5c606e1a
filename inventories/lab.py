"""A pyinfra inventory: every list is a group, a tuple gives a group or a host its data."""

routers = ["router1.example", ("router2.example", {"ssh_port": 2222})]
hypervisors = ([f"hv{number:02d}.example" for number in range(1, 4)], {"ssh_user": "admin", "_sudo": True})
here = ["@local"]
