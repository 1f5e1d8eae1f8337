/* Teams of threads that help a calling thread, and are never waited for unless they have begun. */
#ifndef CSM_CORE_POOL_H
#define CSM_CORE_POOL_H

#if defined(_OPENMP) && !defined(_WIN32)
#define CSM_HAS_POOL
#endif

typedef struct csm_team csm_team;
typedef void (*csm_work)(void *context, int thread);
/* Takes a team of up to threads - 1 workers, numbered from 1.  NULL: the caller works alone. */
csm_team *csm_team_take(int threads);
void csm_team_release(csm_team *);
/* Lets workers 1 to threads - 1 begin, and wakes those that sleep.  Returns whether one slept. */
int csm_team_open(csm_team *, int threads, csm_work, void *context);
int csm_team_entered(csm_team *); /* number of workers that have begun */
/* From now on no worker begins.  Returns the number of those that have begun. */
int csm_team_close(csm_team *);
/* Waits until `entered` workers have ended, at most a moment.  Returns whether they have. */
int csm_team_wait(csm_team *, int entered);
double csm_clock(void); /* seconds; never set back */

#endif
