/* The key-value service: memcached's ASCII protocol over UDP. */

#ifndef KV_H
#define KV_H

#include "net.h"

void kv_receive(const struct datagram *request);

#endif
