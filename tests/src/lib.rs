//! What graylb's packet and namespace tests are built from.
