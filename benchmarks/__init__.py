"""What measures Octavo, alone and against peers; the product never imports it."""
