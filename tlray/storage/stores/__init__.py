"""What every store of shards needs: layout, leases, eviction; files and maps that the processes of a node share."""
