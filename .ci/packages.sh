# Sourced: the Debian packages and languages of the tests on stores, in containers and on clusters.
apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends tinyproxy mmdebstrap buildah openssl openssh-server iproute2 procps docker.io podman runc >/dev/null
export PATH=$PATH:/usr/local/go/bin
command -v go >/dev/null || apt-get install -y -qq --no-install-recommends golang-go >/dev/null
command -v npm >/dev/null || apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null
