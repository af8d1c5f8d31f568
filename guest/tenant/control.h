/* The control service, for tests: open only if the command line says "tenant.control". */

#ifndef CONTROL_H
#define CONTROL_H

#include "net.h"

void control_open(void);

/* "burn <n>\n": executes a loop n times, answers "burned <n> <last value>\n".
 * "poweroff\n": answers "ok\n", then the machine powers off. */
void control_receive(const struct datagram *request);

/* Whether "poweroff" was received. */
bool control_wants_poweroff(void);

#endif
